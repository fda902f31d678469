//! Times of files: which operation changes which, and what utimensat(2) sets. A file's access and
//! modification times are set to a date in the past first, so that a change shows.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::SystemTime;

use anyhow::Result;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fallocate, rename,
    symlink, unlink, utimensat,
};

use super::super::Behaviour;
use super::super::mapping::{Access, Mapping, Sharing};
use super::super::process::as_user;
use super::sys::{
    OTHER, USER, chmod, chown, create, link, list, may, mkdir, must, open, put, said, shown, tick, words, yes,
};

/// A date in the past, in seconds.
const PAST: i64 = 1_000_000_000;

const fn time(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}

fn set_times(name: &str, access: Timespec, modification: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: access,
        last_modification: modification,
    };
    utimensat(CWD, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn stamps(name: &str) -> Result<[(i64, i64); 3]> {
    let stat = std::fs::symlink_metadata(name)?;
    Ok([
        (stat.atime(), stat.atime_nsec()),
        (stat.mtime(), stat.mtime_nsec()),
        (stat.ctime(), stat.ctime_nsec()),
    ])
}

/// Access and modification time of a file.
fn shown_times(name: &str) -> String {
    match stamps(name) {
        Ok([access, modification, _]) => {
            format!(
                "{}.{:09} {}.{:09}",
                access.0, access.1, modification.0, modification.1
            )
        }
        Err(error) => error.to_string(),
    }
}

/// The initials of the times of `name` that `change` changes, "-" if it changes none.
fn changed(name: &str, change: impl FnOnce() -> Result<()>) -> Result<String> {
    // The access time is older than the modification time: with relatime a read changes it only then.
    set_times(name, time(PAST, 0), time(PAST + 1, 0))?;
    let before = stamps(name)?;
    tick()?;
    change()?;
    let after = stamps(name)?;
    let letters: String = "amc"
        .chars()
        .zip(before.iter().zip(&after))
        .filter(|(_, (before, after))| before != after)
        .map(|(letter, _)| letter)
        .collect();
    Ok(if letters.is_empty() {
        "-".to_owned()
    } else {
        letters
    })
}

/// The same for a file "f" with content that is open for reading and writing.
fn changed_file(change: impl FnOnce(&mut std::fs::File) -> Result<()>) -> Result<String> {
    put("f", b"content")?;
    let mut file = open("f", OFlags::RDWR)?;
    changed("f", || change(&mut file))
}

/// The same for a directory "d" that contains a file "f".
fn changed_directory(change: impl FnOnce() -> Result<()>) -> Result<String> {
    mkdir("d", 0o755)?;
    put("d/f", b"content")?;
    changed("d", change)
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("times that a write changes", "mc", || {
        changed_file(|file| Ok(file.write_all(b"x")?))
    }),
    must("times that a write of no bytes changes", "-", || {
        changed_file(|file| {
            file.write_at(b"", 0)?;
            Ok(())
        })
    }),
    must("times that a read changes", "a", || {
        changed_file(|file| {
            file.read_exact(&mut [0; 4])?;
            Ok(())
        })
    }),
    may("times that a second read changes", || {
        put("f", b"content")?;
        let file = open("f", OFlags::RDWR)?;
        set_times("f", time(PAST + 9, 0), time(PAST, 0))?;
        // With relatime an access time that is not later than the change time changes, too.
        tick()?;
        file.read_exact_at(&mut [0; 4], 0)?;
        let before = stamps("f")?;
        tick()?;
        file.read_exact_at(&mut [0; 4], 0)?;
        Ok(if stamps("f")? == before { "-" } else { "changed" }.to_owned())
    }),
    must("times that a read with O_NOATIME changes", "-", || {
        put("f", b"content")?;
        let mut file = open("f", OFlags::RDONLY | OFlags::NOATIME)?;
        changed("f", || Ok(file.read_exact(&mut [0; 4])?))
    }),
    must("times that ftruncate changes", "mc", || {
        changed_file(|file| Ok(file.set_len(3)?))
    }),
    must("times that ftruncate to a larger size changes", "mc", || {
        changed_file(|file| Ok(file.set_len(300)?))
    }),
    must("times that ftruncate to the same size changes", "mc", || {
        changed_file(|file| Ok(file.set_len(7)?))
    }),
    must("times that O_TRUNC changes", "mc", || {
        changed_file(|_| {
            open("f", OFlags::WRONLY | OFlags::TRUNC)?;
            Ok(())
        })
    }),
    must("times that O_TRUNC of an empty file changes", "mc", || {
        put("f", b"")?;
        changed("f", || {
            open("f", OFlags::WRONLY | OFlags::TRUNC)?;
            Ok(())
        })
    }),
    must("times that open changes", "-", || {
        changed_file(|_| {
            open("f", OFlags::RDWR)?;
            Ok(())
        })
    }),
    may("times that fallocate changes", || {
        changed_file(|file| Ok(fallocate(&*file, FallocateFlags::empty(), 0, 100)?))
    }),
    may("times that a punched hole changes", || {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        changed_file(|file| Ok(fallocate(&*file, flags, 0, 4)?))
    }),
    must("times that a write through a mapping changes", "mc", || {
        put("f", b"content")?;
        let mapping = Mapping::new(&open("f", OFlags::RDWR)?, 0, 7, Sharing::Shared, Access::Write)?;
        // Reads the page, which may change the access time.
        mapping.read(0, &mut [0]);
        changed("f", || {
            mapping.write(0, b"x");
            Ok(mapping.sync()?)
        })
    }),
    may("times that a copy changes in its target", || {
        put("g", b"source")?;
        let source = open("g", OFlags::RDONLY)?;
        changed_file(|file| {
            rustix::fs::copy_file_range(&source, None, &*file, None, 3)?;
            Ok(())
        })
    }),
    must("times that chmod changes", "c", || {
        changed_file(|_| Ok(chmod("f", 0o600)?))
    }),
    must("times that chown changes", "c", || {
        changed_file(|_| Ok(chown("f", 5, 6)?))
    }),
    must("times that a new link changes", "c", || {
        changed_file(|_| Ok(link("f", "g")?))
    }),
    must("times that a removed link changes", "c", || {
        put("f", b"")?;
        link("f", "g")?;
        changed("f", || Ok(unlink("g")?))
    }),
    may("times that rename changes in the file", || {
        put("f", b"")?;
        set_times("f", time(PAST, 0), time(PAST + 1, 0))?;
        let before = stamps("f")?;
        tick()?;
        rename("f", "g")?;
        let after = stamps("g")?;
        words([yes(before[..2] == after[..2]), yes(before[2] == after[2])])
    }),
    must("times that utimensat changes", "amc", || {
        changed_file(|_| Ok(set_times("f", time(5, 0), time(6, 0))?))
    }),
    must("times of a directory with a new file", "mc", || {
        changed_directory(|| {
            create("d/g", 0o644)?;
            Ok(())
        })
    }),
    must("times of a directory with a new directory", "mc", || {
        changed_directory(|| Ok(mkdir("d/e", 0o755)?))
    }),
    must("times of a directory with a new link", "mc", || {
        changed_directory(|| Ok(link("d/f", "d/g")?))
    }),
    must("times of a directory with a new symbolic link", "mc", || {
        changed_directory(|| Ok(symlink("x", "d/s")?))
    }),
    must("times of a directory whose file is removed", "mc", || {
        changed_directory(|| Ok(unlink("d/f")?))
    }),
    must("times of a directory whose file is renamed", "mc", || {
        changed_directory(|| Ok(rename("d/f", "d/g")?))
    }),
    must("times of directories between which a file moves", "mc mc", || {
        mkdir("e", 0o755)?;
        let from = changed_directory(|| Ok(rename("d/f", "e/f")?))?;
        let to = changed("d", || Ok(rename("e/f", "d/f")?))?;
        words([from, to])
    }),
    must("times of a directory whose file is written", "-", || {
        changed_directory(|| put("d/f", b"other"))
    }),
    must("times of a directory that is listed", "a", || {
        changed_directory(|| {
            list("d");
            Ok(())
        })
    }),
    must("times of a directory in which a name is missing", "-", || {
        changed_directory(|| {
            said(open("d/no", OFlags::RDONLY));
            Ok(())
        })
    }),
    must("times of a symbolic link that is followed", "-", || {
        put("f", b"")?;
        symlink("f", "s")?;
        // Reading the link would change its access time, as far as the file system keeps that.
        changed("f", || {
            std::fs::metadata("s")?;
            Ok(())
        })
    }),
    must("a new file's times are equal", "yes", || {
        put("f", b"")?;
        let [access, modification, change] = stamps("f")?;
        Ok(yes(access == modification && modification == change))
    }),
    must("a new file's time is the clock's", "yes", || {
        put("f", b"")?;
        let modified = std::fs::metadata("f")?.modified()?;
        let now = SystemTime::now();
        let apart = now
            .duration_since(modified)
            .or_else(|_| modified.duration_since(now))?;
        Ok(yes(apart.as_secs() < 2))
    }),
    must("files that are made in order have times in order", "yes", || {
        put("f", b"")?;
        tick()?;
        put("g", b"")?;
        Ok(yes(stamps("f")?[1] < stamps("g")?[1]))
    }),
    must(
        "nanoseconds of a time",
        "1000000001.123456789 1000000002.000000001",
        || {
            put("f", b"")?;
            set_times("f", time(PAST + 1, 123_456_789), time(PAST + 2, 1))?;
            Ok(shown_times("f"))
        },
    ),
    must(
        "UTIME_OMIT keeps a time",
        "1000000000.000000005 7.000000000 8.000000000 7.000000000",
        || {
            put("f", b"")?;
            set_times("f", time(PAST, 5), time(PAST, 6))?;
            set_times("f", time(0, UTIME_OMIT), time(7, 0))?;
            let first = shown_times("f");
            set_times("f", time(8, 0), time(0, UTIME_OMIT))?;
            words([first, shown_times("f")])
        },
    ),
    must("UTIME_NOW sets the time", "yes yes 5", || {
        put("f", b"")?;
        set_times("f", time(5, 0), time(5, 0))?;
        set_times("f", time(0, UTIME_OMIT), time(0, UTIME_NOW))?;
        let metadata = std::fs::metadata("f")?;
        let age = SystemTime::now()
            .duration_since(metadata.modified()?)
            .unwrap_or_default();
        words([
            yes(age.as_secs() < 2),
            yes(metadata.mtime() > PAST),
            metadata.atime().to_string(),
        ])
    }),
    must("both times omitted change nothing", "-", || {
        changed_file(|_| {
            let omit = time(0, UTIME_OMIT);
            Ok(set_times("f", omit, omit)?)
        })
    }),
    must("nanoseconds that are too many", "EINVAL EINVAL", || {
        put("f", b"")?;
        words([
            said(set_times("f", time(1, 1_000_000_000), time(1, 0))),
            said(set_times("f", time(1, 0), time(1, -1))),
        ])
    }),
    may("far dates", || {
        let mut seen = Vec::new();
        for seconds in [
            -2_147_483_648,
            -1,
            2_147_483_648,
            4_294_967_296,
            15_032_385_535,
            99_999_999_999,
        ] {
            put("f", b"")?;
            let set = said(set_times("f", time(seconds, 0), time(seconds, 0)));
            seen.push(format!(
                "{set}:{}",
                shown(stamps("f").map(|all| all[1].0).map_err(std::io::Error::other))
            ));
        }
        Ok(seen.join(" "))
    }),
    must(
        "times of a symbolic link itself",
        "5.000000000 6.000000000 yes",
        || {
            put("f", b"")?;
            symlink("f", "s")?;
            set_times("s", time(5, 0), time(6, 0))?;
            words([shown_times("s"), yes(stamps("f")?[1].0 > PAST)])
        },
    ),
    must("who may set times", "ok ok EPERM EACCES ok EPERM", || {
        put("own", b"")?;
        chown("own", USER, USER)?;
        chmod("own", 0o400)?;
        put("other", b"")?;
        put("writable", b"")?;
        chmod("writable", 0o666)?;
        let now = time(0, UTIME_NOW);
        as_user(USER, USER, &[], move || {
            words([
                said(set_times("own", time(1, 0), time(1, 0))),
                said(set_times("own", now, now)),
                said(set_times("other", time(1, 0), time(1, 0))),
                said(set_times("other", now, now)),
                said(set_times("writable", now, now)),
                said(set_times("writable", time(1, 0), time(1, 0))),
            ])
        })
    }),
    must("who may open with O_NOATIME", "ok EPERM", || {
        put("f", b"")?;
        chown("f", USER, USER)?;
        let flags = OFlags::RDONLY | OFlags::NOATIME;
        let own = as_user(USER, USER, &[], || Ok(said(open("f", flags))))?;
        let other = as_user(OTHER, OTHER, &[], || Ok(said(open("f", flags))))?;
        words([own, other])
    }),
];
