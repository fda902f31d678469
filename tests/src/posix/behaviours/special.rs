//! FIFOs, sockets, devices, notifications, and what concerns the whole file system.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use anyhow::{Context as _, Result};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, rename, stat, statvfs, unlink};

use super::super::Behaviour;
use super::super::mapping::sync_range;
use super::super::process::{Child, as_user, in_child};
use super::sys::{
    USER, chmod, content, create, list, may, mkdir, mode, must, open, put, said, shown, words, yes,
};

fn make(name: &str, kind: FileType, device: u64) -> rustix::io::Result<()> {
    mknodat(CWD, name, kind, Mode::from_raw_mode(0o666), device)
}

fn device(name: &str) -> Result<String> {
    let number = std::fs::metadata(name)?.rdev();
    Ok(format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    ))
}

/// The events that `change` causes on `watched`: a word and the name of each.
fn events(watched: &str, change: impl FnOnce() -> Result<()>) -> Result<String> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK)?;
    let kinds = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVE;
    inotify.add_watch(watched, kinds)?;
    change()?;
    let mut seen = Vec::new();
    while let Ok(more) = inotify.read_events() {
        for event in more {
            let name = event.name.map(|name| name.to_string_lossy().into_owned());
            let kind = (event.mask & kinds)
                .iter_names()
                .map(|(kind, _)| kind)
                .collect::<Vec<_>>();
            let kind = kind.join("+").replace("IN_", "");
            seen.push(name.map_or(kind.clone(), |name| format!("{kind}:{name}")));
        }
    }
    // IN_IGNORED, which no watch asks for.
    seen.retain(|event| !event.is_empty());
    // Whether equal events are merged depends on when they are read.
    seen.dedup();
    Ok(seen.join(" "))
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("a FIFO between two processes", "ok hello", || {
        let made = said(make("p", FileType::Fifo, 0));
        let child = Child::start(|| {
            std::fs::write("p", b"hello")?;
            Ok(String::new())
        })?;
        let text = content("p");
        child.finish()?;
        words([made, text])
    }),
    must("opening a FIFO without waiting", "ENXIO ok", || {
        make("p", FileType::Fifo, 0)?;
        words([
            said(open("p", OFlags::WRONLY | OFlags::NONBLOCK)),
            said(open("p", OFlags::RDONLY | OFlags::NONBLOCK)),
        ])
    }),
    must("a FIFO's attributes", "644 0 yes", || {
        make("p", FileType::Fifo, 0)?;
        let metadata = std::fs::metadata("p")?;
        words([
            mode("p"),
            metadata.len().to_string(),
            yes(metadata.file_type().is_fifo()),
        ])
    }),
    must("a FIFO that is renamed while it is open", "late", || {
        make("p", FileType::Fifo, 0)?;
        let mut both = open("p", OFlags::RDWR)?;
        rename("p", "q")?;
        let mut other = open("q", OFlags::WRONLY)?;
        other.write_all(b"late")?;
        let mut bytes = [0; 4];
        both.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }),
    must("a socket between two processes", "yes 755 hello", || {
        let listener = UnixListener::bind("u")?;
        let child = Child::start(|| {
            UnixStream::connect("u")?.write_all(b"hello")?;
            Ok(String::new())
        })?;
        let mut text = String::new();
        listener.accept()?.0.read_to_string(&mut text)?;
        child.finish()?;
        let socket = std::fs::metadata("u")?.file_type().is_socket();
        words([yes(socket), mode("u"), text])
    }),
    must("a datagram socket between two processes", "hi", || {
        let socket = UnixDatagram::bind("u")?;
        in_child(|| {
            UnixDatagram::unbound()?.send_to(b"hi", "u")?;
            Ok(String::new())
        })?;
        let mut bytes = [0; 8];
        let length = socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }),
    must(
        "sockets that are refused",
        "EADDRINUSE ENXIO ECONNREFUSED ECONNREFUSED ENOENT EACCES",
        || {
            let listener = UnixListener::bind("u")?;
            put("f", b"")?;
            chmod("u", 0o755)?;
            let user = as_user(USER, USER, &[], || Ok(said(UnixStream::connect("u"))))?;
            let seen = [
                said(UnixListener::bind("u")),
                said(open("u", OFlags::RDWR)),
                said(UnixStream::connect("f")),
            ];
            drop(listener);
            words([
                seen.join(" "),
                said(UnixStream::connect("u")),
                said(UnixStream::connect("no")),
                user,
            ])
        },
    ),
    must("a socket that is renamed", "hello ENOENT", || {
        let listener = UnixListener::bind("u")?;
        rename("u", "v")?;
        UnixStream::connect("v")?.write_all(b"hello")?;
        let mut text = String::new();
        listener.accept()?.0.read_to_string(&mut text)?;
        words([text, said(UnixStream::connect("u"))])
    }),
    must("a device that is made", "ok ok 1:3 0", || {
        let made = said(make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)));
        chmod("null", 0o666)?;
        let mut null = open("null", OFlags::RDWR)?;
        let written = said(null.write_all(b"gone"));
        let read = shown(null.read(&mut [0; 4]));
        words([made, written, device("null")?, read])
    }),
    must("numbers of devices", "255:255 4095:1048575", || {
        make("c", FileType::CharacterDevice, rustix::fs::makedev(255, 255))?;
        make("b", FileType::BlockDevice, rustix::fs::makedev(4095, 1_048_575))?;
        words([device("c")?, device("b")?])
    }),
    must("devices that a container has no access to", "EPERM EPERM", || {
        make("kmsg", FileType::CharacterDevice, rustix::fs::makedev(1, 11))?;
        make("disk", FileType::BlockDevice, rustix::fs::makedev(7, 0))?;
        words([
            said(open("kmsg", OFlags::RDONLY)),
            said(open("disk", OFlags::RDONLY)),
        ])
    }),
    must("what a user may make", "EPERM EPERM ok ok", || {
        mkdir("d", 0o755)?;
        chmod("d", 0o777)?;
        as_user(USER, USER, &[], || {
            words([
                said(make("d/c", FileType::CharacterDevice, rustix::fs::makedev(1, 3))),
                said(make("d/b", FileType::BlockDevice, rustix::fs::makedev(7, 0))),
                said(make("d/p", FileType::Fifo, 0)),
                said(make("d/f", FileType::RegularFile, 0)),
            ])
        })
    }),
    must("mknod of a name that exists", "EEXIST ok 0", || {
        put("f", b"")?;
        words([
            said(make("f", FileType::Fifo, 0)),
            said(make("g", FileType::RegularFile, 0)),
            super::sys::size("g"),
        ])
    }),
    must(
        "notifications of a directory",
        "CREATE:f CLOSE_WRITE:f MODIFY:f CLOSE_WRITE:f MOVED_FROM:f MOVED_TO:g DELETE:g CREATE:e",
        || {
            mkdir("d", 0o755)?;
            events("d", || {
                drop(create("d/f", 0o644)?);
                let file = open("d/f", OFlags::WRONLY)?;
                file.write_all_at(b"x", 0)?;
                drop(file);
                rename("d/f", "d/g")?;
                unlink("d/g")?;
                Ok(mkdir("d/e", 0o755)?)
            })
        },
    ),
    must(
        "notifications of what another process does",
        "MODIFY CLOSE_WRITE ATTRIB",
        || {
            put("f", b"")?;
            events("f", || {
                in_child(|| {
                    open("f", OFlags::WRONLY)?.write_all_at(b"x", 0)?;
                    chmod("f", 0o600)?;
                    Ok(String::new())
                })?;
                Ok(())
            })
        },
    ),
    must(
        "notifications of a file that is removed",
        "ATTRIB DELETE_SELF",
        || {
            put("f", b"")?;
            events("f", || Ok(unlink("f")?))
        },
    ),
    must("the file system of a path", "255 yes yes", || {
        let system = statvfs(".")?;
        words([
            system.f_namemax.to_string(),
            yes(system.f_blocks >= system.f_bfree && system.f_bfree >= system.f_bavail),
            yes(system.f_bsize >= 512 && system.f_blocks > 0),
        ])
    }),
    may("the file system's type", || {
        Ok(format!("{:x}", rustix::fs::statfs(".")?.f_type))
    }),
    must("free space shrinks as a file grows", "yes", || {
        let before = statvfs(".")?;
        let file = create("f", 0o644)?;
        file.write_all_at(&vec![b'x'; 1 << 20], 0)?;
        file.sync_all()?;
        let after = statvfs(".")?;
        let shrunk = before.f_bfree.saturating_sub(after.f_bfree) * after.f_frsize;
        Ok(yes(shrunk >= 1 << 19))
    }),
    must(
        "fsync, fdatasync, sync_file_range and syncfs",
        "ok ok ok ok ok",
        || {
            put("f", b"abc")?;
            let file = open("f", OFlags::RDWR)?;
            let directory = open(".", OFlags::RDONLY)?;
            words([
                said(file.sync_all()),
                said(file.sync_data()),
                said(sync_range(&file)),
                said(rustix::fs::syncfs(&file)),
                said(directory.sync_all()),
            ])
        },
    ),
    must("fsync of what is read-only and of a FIFO", "ok EINVAL", || {
        put("f", b"abc")?;
        make("p", FileType::Fifo, 0)?;
        words([
            said(open("f", OFlags::RDONLY)?.sync_all()),
            said(open("p", OFlags::RDWR)?.sync_all()),
        ])
    }),
    may("flags of an inode", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDONLY)?;
        Ok(said(rustix::fs::ioctl_getflags(&file)))
    }),
    must("device and inode numbers stay", "yes yes", || {
        put("f", b"")?;
        mkdir("d", 0o755)?;
        let before = stat("f")?;
        rename("f", "d/g")?;
        let after = stat("d/g").context("after the rename")?;
        put("d/h", b"")?;
        words([
            yes(before.st_ino == after.st_ino && before.st_dev == after.st_dev),
            yes(list("d") == "g,h" && stat("d/h")?.st_dev == after.st_dev),
        ])
    }),
    may("the time of birth", || {
        put("f", b"")?;
        Ok(yes(std::fs::metadata("f")?.created().is_ok()))
    }),
];
