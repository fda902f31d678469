//! Flags of open(2), and reading and writing by descriptors.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, SeekFrom, fchmod, fcntl_getfl, fcntl_setfl, fstat, linkat,
    mkdir, openat, openat2, seek, symlink,
};
use rustix::io::{ReadWriteFlags, preadv2, pwritev2};

use super::super::Behaviour;
use super::super::process::in_child;
use super::sys::{
    content, create, create_with, list, may, mode, must, open, put, said, shown, size, words, yes,
};

fn temporary(flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::TMPFILE | OFlags::RDWR;
    rustix::fs::open(".", flags, Mode::from_raw_mode(0o640)).map(File::from)
}

/// Bytes at an address that is a multiple of 4096, as O_DIRECT needs it.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    buffer.resize(length + 4096, 0);
    let start = buffer.as_ptr().align_offset(4096);
    &mut buffer[start..start + length]
}

fn resolve(name: &str, flags: ResolveFlags) -> String {
    said(openat2(CWD, name, OFlags::RDONLY, Mode::empty(), flags))
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("O_EXCL", "ok EEXIST EEXIST", || {
        let first = said(create_with("f", OFlags::EXCL, 0o644));
        mkdir("d", Mode::RWXU)?;
        words([
            first,
            said(create_with("f", OFlags::EXCL, 0o644)),
            said(create_with("d", OFlags::EXCL, 0o644)),
        ])
    }),
    must("O_TRUNC", "0 0", || {
        put("f", b"abc")?;
        put("g", b"abc")?;
        open("f", OFlags::WRONLY | OFlags::TRUNC)?;
        create_with("g", OFlags::TRUNC, 0o600)?;
        words([size("f"), size("g")])
    }),
    must("O_APPEND", "abcdef", || {
        put("f", b"abc")?;
        let mut file = open("f", OFlags::WRONLY | OFlags::APPEND)?;
        seek(&file, SeekFrom::Start(0))?;
        file.write_all(b"def")?;
        Ok(content("f"))
    }),
    must("pwrite with O_APPEND appends, as on Linux", "abcx", || {
        put("f", b"abc")?;
        open("f", OFlags::WRONLY | OFlags::APPEND)?.write_all_at(b"x", 0)?;
        Ok(content("f"))
    }),
    must("two processes append to a file", "40 lines, 20 of each", || {
        put("f", b"")?;
        let append = |letter: u8| {
            let mut file = open("f", OFlags::WRONLY | OFlags::APPEND)?;
            for _ in 0..20 {
                file.write_all(&[letter, b'\n'])?;
            }
            Ok(String::new())
        };
        let one = super::super::process::Child::start(|| append(b'a'))?;
        let other = super::super::process::Child::start(|| append(b'b'))?;
        one.finish()?;
        other.finish()?;
        let text = content("f");
        let of = |letter| text.lines().filter(|line| *line == letter).count();
        Ok(format!(
            "{} lines, {} of each",
            text.lines().count(),
            of("a").min(of("b"))
        ))
    }),
    must("O_APPEND that is set later", "abcd", || {
        put("f", b"abc")?;
        let mut file = open("f", OFlags::WRONLY)?;
        fcntl_setfl(&file, OFlags::APPEND)?;
        file.write_all(b"d")?;
        Ok(content("f"))
    }),
    must("O_DIRECTORY", "ENOTDIR ok ENOENT", || {
        put("f", b"")?;
        words([
            said(open("f", OFlags::RDONLY | OFlags::DIRECTORY)),
            said(open(".", OFlags::RDONLY | OFlags::DIRECTORY)),
            said(open("no", OFlags::RDONLY | OFlags::DIRECTORY)),
        ])
    }),
    must(
        "a directory is not opened for writing",
        "EISDIR EISDIR EISDIR EISDIR",
        || {
            mkdir("d", Mode::RWXU)?;
            let directory = open("d", OFlags::RDONLY)?;
            words([
                said(open("d", OFlags::WRONLY)),
                said(create("d", 0o644)),
                said(open("d", OFlags::RDONLY | OFlags::TRUNC)),
                said(rustix::io::read(&directory, &mut [0; 8])),
            ])
        },
    ),
    must("O_NOFOLLOW", "ELOOP ok ok ELOOP", || {
        put("f", b"")?;
        symlink("f", "s")?;
        mkdir("d", Mode::RWXU)?;
        symlink("d", "l")?;
        put("d/f", b"")?;
        words([
            said(open("s", OFlags::RDONLY | OFlags::NOFOLLOW)),
            said(open("f", OFlags::RDONLY | OFlags::NOFOLLOW)),
            said(open("l/f", OFlags::RDONLY | OFlags::NOFOLLOW)),
            said(open("l", OFlags::RDONLY | OFlags::NOFOLLOW)),
        ])
    }),
    must("O_PATH", "EBADF EBADF EBADF 3 yes", || {
        put("f", b"abc")?;
        symlink("f", "s")?;
        let file = open("f", OFlags::PATH)?;
        let link = open("s", OFlags::PATH | OFlags::NOFOLLOW)?;
        words([
            said(rustix::io::read(&file, &mut [0; 8])),
            said(rustix::io::write(&file, b"x")),
            said(fchmod(&file, Mode::RWXU)),
            fstat(&file)?.st_size.to_string(),
            yes(link.metadata()?.is_symlink()),
        ])
    }),
    must("a file opened again by its O_PATH descriptor", "abc", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::PATH)?;
        Ok(content(&format!("/proc/self/fd/{}", file.as_raw_fd())))
    }),
    may("O_TMPFILE", || {
        let mut file = match temporary(OFlags::empty()) {
            Ok(file) => file,
            Err(error) => return Ok(said::<(), _>(Err(error))),
        };
        file.write_all(b"abc")?;
        let stat = fstat(&file)?;
        words([stat.st_nlink.to_string(), stat.st_size.to_string(), list(".")])
    }),
    may("O_TMPFILE that gets a name", || {
        let mut file = match temporary(OFlags::empty()) {
            Ok(file) => file,
            Err(error) => return Ok(said::<(), _>(Err(error))),
        };
        file.write_all(b"abc")?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = said(linkat(CWD, path, CWD, "f", AtFlags::SYMLINK_FOLLOW));
        words([
            linked,
            content("f"),
            mode("f"),
            fstat(&file)?.st_nlink.to_string(),
        ])
    }),
    may("O_TMPFILE with O_EXCL gets no name", || {
        let file = match temporary(OFlags::EXCL) {
            Ok(file) => file,
            Err(error) => return Ok(said::<(), _>(Err(error))),
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(said(linkat(CWD, path, CWD, "f", AtFlags::SYMLINK_FOLLOW)))
    }),
    may("O_DIRECT", || {
        let file = match create_with("f", OFlags::DIRECT, 0o644) {
            Ok(file) => file,
            Err(error) => return Ok(said::<(), _>(Err(error))),
        };
        let mut buffer = Vec::new();
        let bytes = aligned(&mut buffer, 8192);
        bytes.fill(b'd');
        let written = shown(file.write_at(bytes, 4096));
        bytes.fill(0);
        let read = shown(file.read_at(bytes, 0));
        words([
            written,
            read,
            yes(bytes[4096..].iter().all(|byte| *byte == b'd')),
            size("f"),
        ])
    }),
    may("O_DIRECT of what was written without it", || {
        put("f", &[b'a'; 8192])?;
        let file = match open("f", OFlags::RDWR | OFlags::DIRECT) {
            Ok(file) => file,
            Err(error) => return Ok(said::<(), _>(Err(error))),
        };
        let mut buffer = Vec::new();
        let bytes = aligned(&mut buffer, 4096);
        file.read_exact_at(bytes, 4096)?;
        let read = yes(bytes.iter().all(|byte| *byte == b'a'));
        bytes.fill(b'b');
        file.write_all_at(bytes, 0)?;
        let cached = std::fs::read("f")?;
        words([read, yes(cached[..4096].iter().all(|byte| *byte == b'b'))])
    }),
    may("O_DIRECT at an odd position", || {
        put("f", &[b'a'; 8192])?;
        let file = match open("f", OFlags::RDWR | OFlags::DIRECT) {
            Ok(file) => file,
            Err(error) => return Ok(said::<(), _>(Err(error))),
        };
        let mut buffer = Vec::new();
        let bytes = aligned(&mut buffer, 4096);
        words([
            shown(file.read_at(bytes, 1)),
            shown(file.write_at(&bytes[..100], 0)),
        ])
    }),
    must("O_SYNC and O_DSYNC", "abc def", || {
        let mut file = create_with("f", OFlags::SYNC, 0o644)?;
        file.write_all(b"abc")?;
        let mut other = create_with("g", OFlags::DSYNC, 0o644)?;
        other.write_all(b"def")?;
        words([content("f"), content("g")])
    }),
    must("flags of an open file", "yes no yes", || {
        let file = create_with("f", OFlags::APPEND, 0o644)?;
        let has = |flag| Ok::<_, anyhow::Error>(yes(fcntl_getfl(&file)?.contains(flag)));
        words([has(OFlags::APPEND)?, has(OFlags::NONBLOCK)?, has(OFlags::RDWR)?])
    }),
    must(
        "reading and writing against the access mode",
        "EBADF EBADF",
        || {
            put("f", b"abc")?;
            words([
                said(rustix::io::write(open("f", OFlags::RDONLY)?, b"x")),
                said(rustix::io::read(open("f", OFlags::WRONLY)?, &mut [0; 1])),
            ])
        },
    ),
    must("a duplicated descriptor shares its position", "2 5 abXY", || {
        put("f", b"abcd")?;
        let file = open("f", OFlags::RDWR)?;
        let other = file.try_clone()?;
        rustix::io::read(&file, &mut [0; 2])?;
        let position = shown(seek(&other, SeekFrom::Current(0)));
        rustix::io::write(&other, b"XY")?;
        let end = shown(seek(&file, SeekFrom::Current(1)));
        words([position, end, content("f")])
    }),
    must("a child shares the position", "3", || {
        put("f", b"abcd")?;
        let file = open("f", OFlags::RDONLY)?;
        in_child(|| Ok(rustix::io::read(&file, &mut [0; 3])?.to_string()))?;
        Ok(shown(seek(&file, SeekFrom::Current(0))))
    }),
    must("vectors are read and written", "6 abcdef 4 2", || {
        let file = create("f", 0o644)?;
        let written = rustix::io::pwritev(&file, &[IoSlice::new(b"abc"), IoSlice::new(b"def")], 0)?;
        let (mut one, mut two) = ([0; 3], [0; 3]);
        let read = rustix::io::preadv(
            &file,
            &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)],
            2,
        )?;
        let second = two.iter().filter(|byte| **byte == 0).count();
        words([
            written.to_string(),
            content("f"),
            read.to_string(),
            second.to_string(),
        ])
    }),
    must("pwritev2 with RWF_APPEND", "abcx", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDWR)?;
        pwritev2(&file, &[IoSlice::new(b"x")], 0, ReadWriteFlags::APPEND)?;
        Ok(content("f"))
    }),
    must("pwritev2 with RWF_DSYNC", "abcy 2", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDWR)?;
        pwritev2(&file, &[IoSlice::new(b"y")], 3, ReadWriteFlags::DSYNC)?;
        let mut bytes = [0; 2];
        let read = preadv2(
            &file,
            &mut [IoSliceMut::new(&mut bytes)],
            0,
            ReadWriteFlags::empty(),
        );
        words([content("f"), shown(read)])
    }),
    must("a descriptor of a directory", "abc abc ENOTDIR", || {
        mkdir("d", Mode::RWXU)?;
        put("d/f", b"abc")?;
        let held = open("d", OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::rename("d", "e")?;
        let file = File::from(openat(&held, "f", OFlags::RDONLY, Mode::empty())?);
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0)?;
        words([
            String::from_utf8_lossy(&bytes).into_owned(),
            content("e/f"),
            said(openat(&file, "f", OFlags::RDONLY, Mode::empty())),
        ])
    }),
    must("openat2 that restricts a path", "ok EXDEV EXDEV ELOOP ok", || {
        mkdir("d", Mode::RWXU)?;
        put("d/f", b"")?;
        symlink("d", "s")?;
        words([
            resolve("d/f", ResolveFlags::BENEATH),
            resolve("../x", ResolveFlags::BENEATH),
            resolve("/", ResolveFlags::BENEATH),
            resolve("s/f", ResolveFlags::NO_SYMLINKS),
            resolve("d/f", ResolveFlags::NO_XDEV),
        ])
    }),
    must("150 files at once", "150 open", || {
        put("f", b"x")?;
        let files = (0..150)
            .map(|_| open("f", OFlags::RDONLY))
            .collect::<Result<Vec<_>, _>>()?;
        let mut byte = [0];
        files
            .iter()
            .try_for_each(|file| file.read_exact_at(&mut byte, 0))?;
        Ok(format!("{} open", files.len()))
    }),
    must("a write of 4 MiB at once", "4194304 yes", || {
        let file = create("f", 0o644)?;
        let bytes: Vec<u8> = (0..4_u32 << 20).map(|number| number.to_le_bytes()[1]).collect();
        let written = shown(file.write_at(&bytes, 0));
        words([written, yes(std::fs::read("f")? == bytes)])
    }),
];
