//! Names and paths.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, CWD, OFlags, rename, rmdir, stat, statat, unlink};

use super::super::Behaviour;
use super::super::process::in_child;
use super::sys::{content, create, inode, list, mkdir, must, open, put, said, shown, size, words, yes};

pub const BEHAVIOURS: &[Behaviour] = &[
    must("the longest name", "ok ENAMETOOLONG ENAMETOOLONG", || {
        let (longest, longer) = ("n".repeat(255), "n".repeat(256));
        words([
            said(create(&longest, 0o644)),
            said(create(&longer, 0o644)),
            said(stat(longer.as_str())),
        ])
    }),
    must(
        "the longest name of 255 bytes in characters of three",
        "ok ENAMETOOLONG",
        || {
            words([
                said(create(&"€".repeat(85), 0o644)),
                said(create(&"€".repeat(86), 0o644)),
            ])
        },
    ),
    must("the longest path", "ok ENAMETOOLONG", || {
        put("f", b"")?;
        let path = |length: usize| format!("{}f", "./".repeat((length - 1) / 2));
        words([
            said(open(&path(4095), OFlags::RDONLY)),
            said(open(&format!("/{}", path(4095)), OFlags::RDONLY)),
        ])
    }),
    must("names of any bytes", "4 found", || {
        let names: [&[u8]; 4] = [b"\xff\xfe\x80", b"new\nline", b" ", b"back\\slash\x01"];
        for name in names {
            std::fs::write(OsStr::from_bytes(name), name)?;
        }
        let mut found = 0;
        for entry in std::fs::read_dir(".")? {
            let name = entry?.file_name();
            found += usize::from(std::fs::read(&name)? == name.as_bytes());
        }
        Ok(format!("{found} found"))
    }),
    must(
        "names that differ in case or in Unicode form",
        "A,a,e\u{301},é",
        || {
            for name in ["a", "A", "é", "e\u{301}"] {
                put(name, b"")?;
            }
            Ok(list("."))
        },
    ),
    must("names that begin with dots", "...,..x,.x", || {
        for name in ["...", "..x", ".x"] {
            put(name, b"")?;
        }
        Ok(list("."))
    }),
    must(
        "dot and dot dot can't be made, removed or renamed",
        "EEXIST EEXIST EINVAL ENOTEMPTY EISDIR EBUSY EBUSY",
        || {
            mkdir("d", 0o755)?;
            words([
                said(mkdir(".", 0o755)),
                said(mkdir("d/..", 0o755)),
                said(rmdir("d/.")),
                said(rmdir("d/..")),
                said(unlink("d/.")),
                said(rename("d/.", "x")),
                said(rename("d", "d/..")),
            ])
        },
    ),
    must(
        "a slash after the name of a file",
        "ENOTDIR ENOTDIR ENOTDIR ENOTDIR EISDIR",
        || {
            put("f", b"")?;
            words([
                said(open("f/", OFlags::RDONLY)),
                said(stat("f/")),
                said(unlink("f/")),
                said(rename("f/", "g")),
                said(create("new/", 0o644)),
            ])
        },
    ),
    must("a slash after the name of a directory", "ok ok ok ok", || {
        words([
            said(mkdir("d//", 0o755)),
            said(stat("d/")),
            said(rename("d/", "e/")),
            said(rmdir("e/")),
        ])
    }),
    must("an empty path", "ENOENT ENOENT ENOENT", || {
        words([
            said(open("", OFlags::RDONLY)),
            said(stat("")),
            said(mkdir("", 0o755)),
        ])
    }),
    must(
        "a file as a directory of a path",
        "ENOTDIR ENOTDIR ENOTDIR",
        || {
            put("f", b"")?;
            words([
                said(open("f/x", OFlags::RDONLY)),
                said(create("f/x", 0o644)),
                said(rename("f/x", "g")),
            ])
        },
    ),
    must(
        "a missing directory of a path",
        "ENOENT ENOENT ENOENT ENOENT",
        || {
            words([
                said(create("no/x", 0o644)),
                said(mkdir("no/x", 0o755)),
                said(unlink("no/x")),
                said(rmdir("no")),
            ])
        },
    ),
    must(
        "an absent name appears and disappears",
        "ENOENT ok ENOENT ok",
        || {
            let mut seen = [const { String::new() }; 4];
            seen[0] = said(stat("f"));
            put("f", b"x")?;
            seen[1] = said(stat("f"));
            unlink("f")?;
            seen[2] = said(stat("f"));
            mkdir("f", 0o755)?;
            seen[3] = said(stat("f"));
            words(seen)
        },
    ),
    must(
        "a name that another process makes and removes",
        "ENOENT ok 3 ENOENT",
        || {
            let before = said(stat("f"));
            in_child(|| Ok(said(put("f", b"abc").map_err(std::io::Error::other))))?;
            let (made, bytes) = (said(stat("f")), size("f"));
            in_child(|| Ok(said(unlink("f"))))?;
            words([before, made, bytes, said(stat("f"))])
        },
    ),
    must("a name that is used again is another file", "yes new", || {
        put("f", b"old")?;
        let held = open("f", OFlags::RDONLY)?;
        let old = inode("f")?;
        unlink("f")?;
        put("f", b"new")?;
        let other = old != inode("f")?;
        drop(held);
        words([yes(other), content("f")])
    }),
    must(
        "a working directory that was removed",
        "ENOENT ENOENT ENOENT ok",
        || {
            mkdir("d", 0o755)?;
            std::env::set_current_dir("d")?;
            rmdir("../d")?;
            words([
                said(create("f", 0o644)),
                said(mkdir("e", 0o755)),
                said(std::env::current_dir()),
                said(stat(".")),
            ])
        },
    ),
    must("a path of 24 directories", "deep", || {
        let path = vec!["d"; 24].join("/");
        std::fs::create_dir_all(&path)?;
        put(&format!("{path}/f"), b"deep")?;
        Ok(content(&format!("{path}/f")))
    }),
    must("dot dot after a directory has moved", "yes", || {
        for name in ["a", "b", "a/d"] {
            mkdir(name, 0o755)?;
        }
        let held = open("a/d", OFlags::PATH | OFlags::DIRECTORY)?;
        rename("a/d", "b/d")?;
        let above = statat(&held, "..", AtFlags::empty())?;
        Ok(yes(above.st_ino == inode("b")?))
    }),
    must("statx of a descriptor by an empty path", "ok ENOENT", || {
        put("f", b"")?;
        let file = open("f", OFlags::PATH)?;
        words([
            said(statat(&file, "", AtFlags::EMPTY_PATH)),
            said(statat(CWD, "", AtFlags::empty())),
        ])
    }),
    must("the working directory's path after a rename", "/new", || {
        mkdir("old", 0o755)?;
        std::env::set_current_dir("old")?;
        rename("../old", "../new")?;
        let path = std::env::current_dir()?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(shown(Ok::<_, std::io::Error>(format!("/{name}"))))
    }),
];
