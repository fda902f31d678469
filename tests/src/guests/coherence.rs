//! What the guest and the host see of each other's changes to files: times of a root file system that the guest keeps
//! for a while, and names of a volume (docs/shared-files.md), also when a volume is unmounted.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::UnmountFlags;
use serde_json::{Value, json};

use super::requests::{MOUNT_POINTS, TREES, mount_trees};
use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{Parameters, SHARED};
use super::{Build, Guest, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[
    test(
        "times that wait in the guest are on the host after fsync, syncfs, sync, chmod and close",
        waiting_times,
    ),
    test(
        "a guest sees at once that the host has replaced a file, and soon a directory",
        replaced,
    ),
    test(
        "a volume is unmounted while names of its directories are kept",
        unmounted,
    ),
];

/// Sets times, and reads files.
pub const WORKLOAD: Workload = Workload {
    name: "coherence",
    run: serve,
};

/// A file in the root file system, and one in the volume.
const TIMED: &str = "timed";
const REPLACED: &str = "way/file";
/// How often the volume is unmounted.
const ROUNDS: usize = 50;
/// How long a guest may take to see another directory: 20 ms and the time of its requests, under emulation.
const SOON: Duration = Duration::from_secs(2);

/// What the guest is asked to do. Each has a letter.
const MAKE: u8 = b'm';
const FSYNC: u8 = b'f';
const SYNCFS: u8 = b's';
const SYNC: u8 = b'S';
const CHMOD: u8 = b'c';
const CLOSE: u8 = b'e';
const REMOVE: u8 = b'x';
const READ: u8 = b'r';
const WAIT: u8 = b'w';
const UNMOUNT: u8 = b'u';

fn boot(build: &Build) -> Result<(Guest, UnixStream)> {
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        mounts: &TREES,
        ..Options::default()
    })?;
    let stream = guest.connect()?;
    Ok((guest, stream))
}

/// Has the guest do what `order` says, and returns its answer of one byte.
fn ask(stream: &mut UnixStream, order: u8) -> Result<u8> {
    stream.write_all(&[order])?;
    let mut answer = [0];
    stream
        .read_exact(&mut answer)
        .context("the guest did not answer")?;
    Ok(answer[0])
}

fn waiting_times(build: &Build) -> Result<()> {
    let (guest, mut stream) = boot(build)?;
    let file = guest.shared().join(TREES[0]).join(TIMED);
    for sends in [FSYNC, SYNCFS, SYNC, CHMOD, CLOSE] {
        ask(&mut stream, MAKE)?;
        ask(&mut stream, sends)?;
        let seen = fs::metadata(&file)?;
        ensure!(
            (seen.mtime(), seen.len()) == (0, 7),
            "after {}: {seen:?}",
            char::from(sends)
        );
        if sends != CLOSE {
            ask(&mut stream, CLOSE)?;
        }
        ask(&mut stream, REMOVE)?;
    }
    drop(stream);
    guest.finish(DEADLINE).map(drop)
}

fn replaced(build: &Build) -> Result<()> {
    let (guest, mut stream) = boot(build)?;
    let tree = guest.shared().join(TREES[1]);
    let put = |content: u8| -> Result<()> {
        fs::write(tree.join("new"), [content])?;
        Ok(fs::rename(tree.join("new"), tree.join(REPLACED))?)
    };
    fs::create_dir(tree.join("way"))?;
    put(0)?;
    ensure!(ask(&mut stream, READ)? == 0);
    for content in 1..20 {
        put(content)?;
        let seen = ask(&mut stream, READ)?;
        ensure!(
            seen == content,
            "the guest reads {seen}, the host has written {content}"
        );
    }
    fs::rename(tree.join("way"), tree.join("old"))?;
    fs::create_dir(tree.join("way"))?;
    put(b'!')?;
    let milliseconds = ask(&mut stream, WAIT)?;
    println!("        the guest saw the other directory after {milliseconds} ms");
    drop(stream);
    guest.finish(DEADLINE).map(drop)
}

fn unmounted(build: &Build) -> Result<()> {
    let (guest, mut stream) = boot(build)?;
    let directory = guest.shared().join(TREES[1]).join("way");
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), "x")?;
    ask(&mut stream, UNMOUNT)?;
    drop(stream);
    guest.finish(DEADLINE).map(drop)
}

fn serve(_: &Parameters) -> Result<Value> {
    mount_trees()?;
    let [rootfs, volume] = MOUNT_POINTS.map(Path::new);
    let mut conversation = Conversation::accept()?;
    let (mut file, mut order) = (None, [0]);
    while conversation.stream.read(&mut order)? == 1 {
        let answer = match order[0] {
            MAKE => {
                file = Some(make(&rootfs.join(TIMED))?);
                0
            }
            CLOSE => {
                file = None;
                0
            }
            REMOVE => {
                fs::remove_file(rootfs.join(TIMED))?;
                0
            }
            READ => read(&volume.join(REPLACED))?,
            UNMOUNT => unmount_often(volume)?,
            WAIT => wait(&volume.join(REPLACED))?,
            sends => send(sends, file.as_ref().context("no file is open")?, rootfs)?,
        };
        conversation.stream.write_all(&[answer])?;
    }
    Ok(json!({}))
}

fn make(path: &Path) -> Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(b"content")?;
    file.set_modified(SystemTime::UNIX_EPOCH)?;
    Ok(file)
}

fn send(order: u8, file: &File, rootfs: &Path) -> Result<u8> {
    match order {
        FSYNC => file.sync_all()?,
        SYNCFS => rustix::fs::syncfs(file)?,
        SYNC => rustix::fs::sync(),
        CHMOD => rustix::fs::chmod(rootfs.join(TIMED), rustix::fs::Mode::from_raw_mode(0o600))?,
        _ => bail!("unknown order {order}"),
    }
    Ok(0)
}

fn read(path: &Path) -> Result<u8> {
    let content = fs::read(path)?;
    content.first().copied().context("the file is empty")
}

/// Reads until the file is the one in the other directory, and returns how many milliseconds that took.
fn wait(path: &Path) -> Result<u8> {
    let started = Instant::now();
    while read(path).ok() != Some(b'!') {
        ensure!(
            started.elapsed() < SOON,
            "still the file in the directory that was renamed"
        );
    }
    Ok(u8::try_from(started.elapsed().as_millis()).unwrap_or(u8::MAX))
}

/// Mounts the volume, passes its directory and unmounts it, again and again. The kernel must not complain.
fn unmount_often(volume: &Path) -> Result<u8> {
    let submount = Path::new(SHARED).join(TREES[1]);
    rustix::mount::unmount(volume, UnmountFlags::empty())?;
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    for _ in 0..ROUNDS {
        rustix::mount::unmount(&submount, UnmountFlags::empty()).context("unmounting the volume")?;
        read(&submount.join(REPLACED))?;
    }
    let mut record = [0; 8192];
    while let Ok(length) = log.read(&mut record) {
        let line = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
        ensure!(
            !line.contains("still in use") && !line.contains("cut here") && !line.contains("BUG:"),
            "the kernel says {line}"
        );
    }
    Ok(0)
}
