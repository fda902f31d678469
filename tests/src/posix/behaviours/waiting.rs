//! What follows when times, or an owner that a file already has, are set while the file is open for writing. The guest's
//! kernel may keep those for a while (docs/shared-files.md); nobody may see that.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Result;
use rustix::fs::{FallocateFlags, OFlags, Timespec, Timestamps, fallocate, futimens, rename, unlink};

use super::super::Behaviour;
use super::super::mapping::{Access, Mapping, Sharing};
use super::sys::{chmod, chown, link, must, open, put, tick, words, yes};

/// Dates in the past, in seconds.
const ACCESS: i64 = 1_000_000_000;
const MODIFICATION: i64 = 1_000_000_001;

fn set_times(file: &File) -> Result<()> {
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let times = Timestamps {
        last_access: time(ACCESS),
        last_modification: time(MODIFICATION),
    };
    Ok(futimens(file, &times)?)
}

/// A file "f" with content and times in the past, which is open for reading and writing. Nobody has looked at it since.
fn prepared() -> Result<File> {
    put("f", b"content")?;
    let mut file = open("f", OFlags::RDWR)?;
    file.write_all(b"CONTENT")?;
    tick()?;
    set_times(&file)?;
    Ok(file)
}

/// Whether `name` has the times that were set.
fn has(name: &str) -> Result<String> {
    let seen = std::fs::metadata(name)?;
    words([yes(seen.atime() == ACCESS), yes(seen.mtime() == MODIFICATION)])
}

/// The same for "f" after `change`, and again once the file is closed.
fn after(change: impl FnOnce(&mut File) -> Result<()>) -> Result<String> {
    let mut file = prepared()?;
    change(&mut file)?;
    let open = has("f")?;
    drop(file);
    words([open, has("f")?])
}

/// The same, but nobody looks before the file is closed.
fn after_close(change: impl FnOnce(&mut File) -> Result<()>) -> Result<String> {
    let mut file = prepared()?;
    change(&mut file)?;
    drop(file);
    has("f")
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("times that were set", "yes yes yes yes", || after(|_| Ok(()))),
    must("times that were set, after close", "yes yes", || {
        after_close(|_| Ok(()))
    }),
    must("times that were set before a write", "yes no", || {
        after_close(|file| Ok(file.write_all(b"x")?))
    }),
    must("times that were set before an ftruncate", "yes no", || {
        after_close(|file| Ok(file.set_len(3)?))
    }),
    must("times that were set before another's O_TRUNC", "yes no", || {
        after_close(|_| {
            open("f", OFlags::WRONLY | OFlags::TRUNC)?;
            Ok(())
        })
    }),
    must("times that were set before fallocate", "yes no", || {
        after_close(|file| Ok(fallocate(&*file, FallocateFlags::empty(), 0, 100_000)?))
    }),
    must("times that were set before a copy", "yes no", || {
        put("g", b"source")?;
        let source = open("g", OFlags::RDONLY)?;
        after_close(|file| {
            rustix::fs::copy_file_range(&source, None, &*file, None, 3)?;
            Ok(())
        })
    }),
    must(
        "times that were set before a write through a mapping",
        "no",
        || {
            let file = prepared()?;
            let mapping = Mapping::new(&file, 0, 7, Sharing::Shared, Access::Write)?;
            mapping.write(0, b"x");
            mapping.sync()?;
            drop(file);
            // mmap may change the access time.
            Ok(yes(std::fs::metadata("f")?.mtime() == MODIFICATION))
        },
    ),
    must("times that were set before fsync", "yes yes", || {
        after_close(|file| Ok(file.sync_all()?))
    }),
    must("times that were set before a chmod", "yes yes 600", || {
        let seen = after_close(|_| Ok(chmod("f", 0o600)?))?;
        words([seen, format!("{:o}", std::fs::metadata("f")?.mode() & 0o7777)])
    }),
    must("times that were set before a chown", "yes yes 5:6", || {
        let seen = after_close(|_| Ok(chown("f", 5, 6)?))?;
        let metadata = std::fs::metadata("f")?;
        words([seen, format!("{}:{}", metadata.uid(), metadata.gid())])
    }),
    must("times that were set before a rename", "yes yes", || {
        let file = prepared()?;
        rename("f", "g")?;
        drop(file);
        has("g")
    }),
    must("times that were set before a link", "yes yes", || {
        let file = prepared()?;
        link("f", "g")?;
        drop(file);
        has("g")
    }),
    must("times that were set before an unlink", "yes yes", || {
        let file = prepared()?;
        unlink("f")?;
        let seen = file.metadata()?;
        words([yes(seen.atime() == ACCESS), yes(seen.mtime() == MODIFICATION)])
    }),
    must(
        "times that were set while two have the file open",
        "yes yes",
        || {
            let file = prepared()?;
            let other = open("f", OFlags::RDWR)?;
            drop(file);
            let seen = has("f")?;
            drop(other);
            Ok(seen)
        },
    ),
    must("an owner that was set again, and then a mode", "4755", || {
        let file = prepared()?;
        let owner = file.metadata()?;
        chown("f", owner.uid(), owner.gid())?;
        chmod("f", 0o4755)?;
        drop(file);
        Ok(format!("{:o}", std::fs::metadata("f")?.mode() & 0o7777))
    }),
    must("the change time of an owner that was set again", "yes", || {
        let file = prepared()?;
        let before = file.metadata()?;
        tick()?;
        chown("f", before.uid(), before.gid())?;
        drop(file);
        let after = std::fs::metadata("f")?;
        let change = |seen: &std::fs::Metadata| (seen.ctime(), seen.ctime_nsec());
        Ok(yes(change(&before) < change(&after)))
    }),
    must("the content of a file whose times were set", "CONTENT", || {
        drop(prepared()?);
        Ok(std::fs::read_to_string("f")?)
    }),
];
