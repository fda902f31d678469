//! Directories: making, removing and reading them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::Result;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, mknodat, rmdir, stat, symlink, unlink};

use super::super::Behaviour;
use super::super::process::as_user;
use super::sys::{USER, inode, link, list, may, mkdir, must, open, put, said, words, yes};

/// Entries of the large directory: they need several READDIR requests, and a moment to make.
const MANY: usize = 300;

fn read(directory: &File) -> Result<Vec<(String, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        entries.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.file_type(),
        ));
    }
    Ok(entries)
}

/// A directory "d" with [`MANY`] links of one file: a link costs less than a file.
fn large() -> Result<File> {
    mkdir("d", 0o755)?;
    put("d/0", b"")?;
    for number in 1..MANY {
        link("d/0", &format!("d/{number}"))?;
    }
    Ok(open("d", OFlags::RDONLY | OFlags::DIRECTORY)?)
}

fn plain_names(directory: &mut Dir) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in directory {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != "." && name != "..");
    Ok(names)
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must(
        "directories that are not made",
        "EEXIST EEXIST ENOENT ENOTDIR",
        || {
            mkdir("d", 0o755)?;
            put("f", b"")?;
            words([
                said(mkdir("d", 0o755)),
                said(mkdir("f", 0o755)),
                said(mkdir("no/d", 0o755)),
                said(mkdir("f/d", 0o755)),
            ])
        },
    ),
    must(
        "directories that are not removed",
        "ENOTEMPTY ENOTDIR ENOENT ENOTDIR",
        || {
            mkdir("d", 0o755)?;
            put("d/f", b"")?;
            put("f", b"")?;
            mkdir("e", 0o755)?;
            symlink("e", "s")?;
            words([
                said(rmdir("d")).replace("EEXIST", "ENOTEMPTY"),
                said(rmdir("f")),
                said(rmdir("no")),
                said(rmdir("s")),
            ])
        },
    ),
    must("unlink of a directory", "EISDIR ok", || {
        mkdir("d", 0o755)?;
        words([said(unlink("d")), said(rmdir("d"))])
    }),
    must(
        "a directory is removed when it is empty",
        "ENOTEMPTY ok ENOENT",
        || {
            mkdir("d", 0o755)?;
            put("d/f", b"")?;
            let full = said(rmdir("d")).replace("EEXIST", "ENOTEMPTY");
            unlink("d/f")?;
            words([full, said(rmdir("d")), said(stat("d"))])
        },
    ),
    must("a new directory has dot and dot dot", "2 yes yes", || {
        mkdir("d", 0o755)?;
        let names: Vec<String> = read(&open("d", OFlags::RDONLY)?)?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        words([
            names.len().to_string(),
            yes(names.contains(&".".to_owned()) && names.contains(&"..".to_owned())),
            yes(stat("d/..")?.st_ino == stat(".")?.st_ino),
        ])
    }),
    must(
        "types of a directory's entries",
        "d:Directory f:RegularFile p:Fifo s:Symlink u:Socket",
        || {
            mkdir("x", 0o755)?;
            mkdir("x/d", 0o755)?;
            put("x/f", b"")?;
            symlink("f", "x/s")?;
            mknodat(CWD, "x/p", FileType::Fifo, Mode::RUSR, 0)?;
            mknodat(CWD, "x/u", FileType::Socket, Mode::RUSR, 0)?;
            let mut seen: Vec<String> = read(&open("x", OFlags::RDONLY)?)?
                .into_iter()
                .filter(|(name, _)| !name.starts_with('.'))
                .map(|(name, kind)| format!("{name}:{kind:?}"))
                .collect();
            seen.sort_unstable();
            Ok(seen.join(" "))
        },
    ),
    must("the inode number of an entry is the file's", "yes", || {
        put("f", b"")?;
        let directory = open(".", OFlags::RDONLY)?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if entry.file_name().to_bytes() == b"f" {
                return Ok(yes(entry.ino() == inode("f")?));
            }
        }
        Ok("missing".to_owned())
    }),
    must("a large directory", "300 300", || {
        let names: Vec<String> = plain_names(&mut Dir::read_from(large()?)?)?;
        let different: BTreeSet<&String> = names.iter().collect();
        words([names.len().to_string(), different.len().to_string()])
    }),
    must("a large directory is removed while it is read", "yes ok", || {
        let mut directory = Dir::read_from(large()?)?;
        let mut removed = 0;
        while let Some(entry) = directory.read() {
            let entry = entry?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                unlink(std::path::Path::new("d").join(name))?;
                removed += 1;
            }
        }
        words([yes(removed == MANY), said(rmdir("d"))])
    }),
    must("a position in a large directory", "yes yes", || {
        let mut directory = Dir::read_from(large()?)?;
        let mut at = 0;
        for _ in 0..200 {
            if let Some(entry) = directory.read() {
                at = entry?.offset();
            }
        }
        let rest = plain_names(&mut directory)?;
        directory.seek(at)?;
        let again = plain_names(&mut directory)?;
        words([yes(rest.len() >= 100), yes(rest == again)])
    }),
    must("a directory is read again from its start", "1 2", || {
        mkdir("d", 0o755)?;
        put("d/f", b"")?;
        let mut directory = Dir::read_from(open("d", OFlags::RDONLY)?)?;
        let first = plain_names(&mut directory)?.len();
        put("d/g", b"")?;
        directory.rewind();
        words([first.to_string(), plain_names(&mut directory)?.len().to_string()])
    }),
    must("a directory shows each change at once", "f f,g g  h", || {
        mkdir("d", 0o755)?;
        put("d/f", b"")?;
        let one = list("d");
        put("d/g", b"")?;
        let two = list("d");
        unlink("d/f")?;
        let three = list("d");
        unlink("d/g")?;
        let none = list("d");
        put("h", b"")?;
        rustix::fs::rename("h", "d/h")?;
        words([one, two, three, none, list("d")])
    }),
    must("a removed directory that is open", "ENOENT ENOENT ok", || {
        mkdir("d", 0o755)?;
        let held = open("d", OFlags::RDONLY)?;
        rmdir("d")?;
        let file = rustix::fs::openat(&held, "f", OFlags::CREATE | OFlags::RDWR, Mode::RWXU);
        words([
            said(file),
            said(rustix::fs::mkdirat(&held, "e", Mode::RWXU)),
            said(held.metadata()),
        ])
    }),
    must("a directory that a user can't list", "EACCES", || {
        mkdir("d", 0o711)?;
        as_user(USER, USER, &[], || Ok(list("d")))
    }),
    must(
        "a name of a removed directory is used by a file",
        "file f",
        || {
            mkdir("d", 0o755)?;
            put("d/f", b"")?;
            unlink("d/f")?;
            rmdir("d")?;
            put("d", b"file")?;
            let text = super::sys::content("d");
            unlink("d")?;
            mkdir("d", 0o755)?;
            put("d/f", b"")?;
            words([text, list("d")])
        },
    ),
    may("the size of an empty directory", || {
        mkdir("d", 0o755)?;
        Ok(yes(std::fs::metadata("d")?.len() > 0))
    }),
];
