//! What the behaviours use again and again: calls with short names, and observations as words.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, Timespec};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::super::Behaviour;

/// The uid and gid of the user that is not root.
pub const USER: u32 = 1000;
/// Another user's.
pub const OTHER: u32 = 2000;

/// A behaviour that every file system of Linux has.
pub const fn must(name: &'static str, expected: &'static str, observe: fn() -> Result<String>) -> Behaviour {
    Behaviour {
        name,
        expected: Some(expected),
        observe,
    }
}

/// A behaviour that depends on the file system.
pub const fn may(name: &'static str, observe: fn() -> Result<String>) -> Behaviour {
    Behaviour {
        name,
        expected: None,
        observe,
    }
}

/// "ok" or the name of the error.
pub fn said<T, E: Into<io::Error>>(result: Result<T, E>) -> String {
    shown(result.map(|_| "ok"))
}

/// The value or the name of the error.
pub fn shown<T: Display, E: Into<io::Error>>(result: Result<T, E>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => {
            let error = error.into();
            match error.raw_os_error() {
                Some(number) => format!("{:?}", Errno::from_raw(number)),
                None => error.to_string(),
            }
        }
    }
}

/// The words with spaces between them.
pub fn words<const N: usize>(words: [String; N]) -> Result<String> {
    Ok(words.join(" "))
}

/// "yes" or "no".
pub fn yes(fact: bool) -> String {
    if fact { "yes" } else { "no" }.to_owned()
}

/// open(2) of an existing file.
pub fn open(name: &str, flags: OFlags) -> rustix::io::Result<File> {
    rustix::fs::open(name, flags, Mode::empty()).map(File::from)
}

/// open(2) with O_CREAT and O_RDWR.
pub fn create(name: &str, mode: u32) -> rustix::io::Result<File> {
    create_with(name, OFlags::empty(), mode)
}

/// [`create`] with more flags.
pub fn create_with(name: &str, flags: OFlags, mode: u32) -> rustix::io::Result<File> {
    let flags = flags | OFlags::CREATE | OFlags::RDWR;
    rustix::fs::open(name, flags, Mode::from_raw_mode(mode)).map(File::from)
}

/// mkdir(2).
pub fn mkdir(name: &str, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdir(name, Mode::from_raw_mode(mode))
}

/// chmod(2).
pub fn chmod(name: &str, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::chmod(name, Mode::from_raw_mode(mode))
}

/// lchown(2).
pub fn chown(name: &str, uid: u32, gid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(name, Some(uid), Some(gid))
}

/// A new file with this content.
pub fn put(name: &str, content: &[u8]) -> Result<()> {
    std::fs::write(name, content).with_context(|| format!("writing {name}"))
}

/// The file's content as text.
pub fn content(name: &str) -> String {
    shown(std::fs::read(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The mode's lower 12 bits in octal, of a link itself.
pub fn mode(name: &str) -> String {
    shown(std::fs::symlink_metadata(name).map(|stat| format!("{:o}", stat.mode() & 0o7777)))
}

/// The owner and the group, of a link itself.
pub fn owner(name: &str) -> String {
    shown(std::fs::symlink_metadata(name).map(|stat| format!("{}:{}", stat.uid(), stat.gid())))
}

/// The number of links.
pub fn links(name: &str) -> String {
    shown(std::fs::symlink_metadata(name).map(|stat| stat.nlink()))
}

/// The size in bytes.
pub fn size(name: &str) -> String {
    shown(std::fs::symlink_metadata(name).map(|stat| stat.len()))
}

/// The inode number; only for comparisons.
pub fn inode(name: &str) -> io::Result<u64> {
    std::fs::symlink_metadata(name).map(|stat| stat.ino())
}

/// The names in a directory but "." and "..", sorted.
pub fn list(name: &str) -> String {
    let names = std::fs::read_dir(name).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<String>>>()
    });
    shown(names.map(|mut names| {
        names.sort_unstable();
        names.join(",")
    }))
}

/// Waits until the kernel's coarse clock, from which file times are taken, has moved: for 20 ms by a timer.
pub fn tick() -> Result<()> {
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let value = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        },
    };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value)?;
    let mut fds = [PollFd::new(&timer, PollFlags::IN)];
    poll(&mut fds, None)?;
    Ok(())
}

/// linkat(2) from and to a name of the working directory.
pub fn link(old: &str, new: &str) -> rustix::io::Result<()> {
    rustix::fs::linkat(CWD, old, CWD, new, rustix::fs::AtFlags::empty())
}

/// A static program for x86-64 that exits with code 42: an ELF header, one program header and three
/// instructions (mov edi, 42; mov eax, 60; syscall).
pub fn program() -> Vec<u8> {
    const CODE: [u8; 12] = [0xbf, 42, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for (bytes, value) in [
        (2, 2),
        (2, 62),
        (4, 1),
        (8, BASE + HEADERS),
        (8, 64),
        (8, 0),
        (4, 0),
        (2, 64),
        (2, 56),
        (2, 1),
        (2, 64),
        (2, 0),
        (2, 0),
        // The program header: loaded, read and execute, from the file's start.
        (4, 1),
        (4, 5),
        (8, 0),
        (8, BASE),
        (8, BASE),
        (8, HEADERS + CODE.len() as u64),
        (8, HEADERS + CODE.len() as u64),
        (8, 4096_u64),
    ] {
        file.extend_from_slice(&value.to_le_bytes()[..bytes]);
    }
    file.extend_from_slice(&CODE);
    file
}

/// Writes [`program`] as an executable file.
pub fn put_program(name: &str) -> Result<()> {
    put(name, &program())?;
    Ok(chmod(name, 0o755)?)
}

/// Runs a file; "exited 42", or the error of its start.
pub fn execute(path: &str) -> String {
    let status = std::process::Command::new(path).status();
    shown(status.map(|status| match status.code() {
        Some(code) => format!("exited {code}"),
        None => format!("{status}"),
    }))
}
