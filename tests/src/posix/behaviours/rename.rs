//! rename(2) and renameat2(2).

use std::io::Read as _;

use rustix::fs::{CWD, OFlags, RenameFlags, rename, renameat_with, stat, symlink};

use super::super::Behaviour;
use super::super::process::as_user;
use super::sys::{
    USER, chmod, chown, content, inode, link, links, list, mkdir, must, open, put, said, words, yes,
};

fn rename_with(old: &str, new: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, old, CWD, new, flags)
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("rename to a free name", "ENOENT abc yes", || {
        put("f", b"abc")?;
        let before = inode("f")?;
        rename("f", "g")?;
        words([said(stat("f")), content("g"), yes(before == inode("g")?)])
    }),
    must("rename over a file", "new g", || {
        put("f", b"new")?;
        put("g", b"old")?;
        rename("f", "g")?;
        words([content("g"), list(".")])
    }),
    must("rename over an open file", "old 0 new", || {
        put("f", b"new")?;
        put("g", b"old")?;
        let mut held = open("g", OFlags::RDONLY)?;
        rename("f", "g")?;
        let mut text = String::new();
        held.read_to_string(&mut text)?;
        let count = rustix::fs::fstat(&held)?.st_nlink;
        words([text, count.to_string(), content("g")])
    }),
    must("rename of an open file", "abc abcd", || {
        put("f", b"abc")?;
        let held = open("f", OFlags::WRONLY | OFlags::APPEND)?;
        rename("f", "g")?;
        let before = content("g");
        rustix::io::write(&held, b"d")?;
        words([before, content("g")])
    }),
    must("rename over an empty directory", "ok ok ENOENT", || {
        mkdir("a", 0o755)?;
        mkdir("b", 0o755)?;
        put("a/f", b"")?;
        words([said(rename("a", "b")), said(stat("b/f")), said(stat("a"))])
    }),
    must("rename over a directory that is not empty", "ENOTEMPTY f", || {
        mkdir("a", 0o755)?;
        mkdir("b", 0o755)?;
        put("b/f", b"")?;
        let refused = said(rename("a", "b")).replace("EEXIST", "ENOTEMPTY");
        words([refused, list("b")])
    }),
    must("rename between a file and a directory", "EISDIR ENOTDIR", || {
        mkdir("d", 0o755)?;
        put("f", b"")?;
        words([said(rename("f", "d")), said(rename("d", "f"))])
    }),
    must(
        "rename of a directory into itself",
        "EINVAL EINVAL ENOTEMPTY",
        || {
            std::fs::create_dir_all("d/e")?;
            words([
                said(rename("d", "d/x")),
                said(rename("d", "d/e/x")),
                said(rename("d/e", "d")).replace("EEXIST", "ENOTEMPTY"),
            ])
        },
    ),
    must("rename to its own name", "ok f", || {
        put("f", b"")?;
        words([said(rename("f", "f")), list(".")])
    }),
    must(
        "rename between two links of a file does nothing",
        "ok f,g 2",
        || {
            put("f", b"")?;
            link("f", "g")?;
            words([said(rename("f", "g")), list("."), links("f")])
        },
    ),
    must("rename of what is missing", "ENOENT ENOENT ENAMETOOLONG", || {
        put("f", b"")?;
        words([
            said(rename("no", "x")),
            said(rename("f", "no/x")),
            said(rename("f", "n".repeat(256).as_str())),
        ])
    }),
    must("rename into another directory", "ENOENT abc f", || {
        mkdir("a", 0o755)?;
        mkdir("b", 0o755)?;
        put("a/f", b"abc")?;
        rename("a/f", "b/f")?;
        words([said(stat("a/f")), content("b/f"), list("b")])
    }),
    must(
        "rename of a directory with what is below it",
        "abc ENOENT",
        || {
            std::fs::create_dir_all("a/b/c")?;
            put("a/b/c/f", b"abc")?;
            let before = content("a/b/c/f");
            mkdir("z", 0o755)?;
            rename("a/b", "z/y")?;
            assert_eq!(before, "abc");
            words([content("z/y/c/f"), said(stat("a/b/c/f"))])
        },
    ),
    must("rename of a symbolic link and over one", "x yes", || {
        put("f", b"x")?;
        symlink("f", "s")?;
        symlink("no", "r")?;
        rename("s", "r")?;
        let moved = content("r");
        put("g", b"")?;
        rename("g", "r")?;
        words([moved, yes(std::fs::symlink_metadata("r")?.is_file())])
    }),
    must("rename and make the old name again", "new old", || {
        put("f", b"old")?;
        rename("f", "g")?;
        put("f", b"new")?;
        words([content("f"), content("g")])
    }),
    must("rename there and back", "abc ENOENT", || {
        put("f", b"abc")?;
        rename("f", "g")?;
        rename("g", "f")?;
        words([content("f"), said(stat("g"))])
    }),
    must("rename with RENAME_NOREPLACE", "EEXIST two ok one", || {
        put("f", b"one")?;
        put("g", b"two")?;
        let refused = said(rename_with("f", "g", RenameFlags::NOREPLACE));
        let kept = content("g");
        let moved = said(rename_with("f", "h", RenameFlags::NOREPLACE));
        words([refused, kept, moved, content("h")])
    }),
    must("rename with RENAME_EXCHANGE", "ok two one", || {
        put("f", b"one")?;
        put("g", b"two")?;
        let done = said(rename_with("f", "g", RenameFlags::EXCHANGE));
        words([done, content("f"), content("g")])
    }),
    must("an exchange of a file and a directory", "ok yes one x", || {
        put("f", b"one")?;
        mkdir("d", 0o755)?;
        put("d/x", b"")?;
        let done = said(rename_with("f", "d", RenameFlags::EXCHANGE));
        let directory = std::fs::symlink_metadata("f")?.is_dir();
        words([done, yes(directory), content("d"), list("f")])
    }),
    must("exchanges that are refused", "ENOENT EINVAL EINVAL", || {
        put("f", b"")?;
        std::fs::create_dir_all("d/e")?;
        words([
            said(rename_with("f", "no", RenameFlags::EXCHANGE)),
            said(rename_with(
                "f",
                "d",
                RenameFlags::EXCHANGE | RenameFlags::NOREPLACE,
            )),
            said(rename_with("d", "d/e", RenameFlags::EXCHANGE)),
        ])
    }),
    must(
        "rename of a directory that its user can't write",
        "EACCES ok",
        || {
            std::fs::create_dir_all("a/d")?;
            mkdir("b", 0o755)?;
            for name in ["a", "b"] {
                chown(name, USER, USER)?;
            }
            // Its entry for the parent would change.
            let within = as_user(USER, USER, &[], || {
                words([said(rename("a/d", "b/d")), said(rename("a/d", "a/e"))])
            })?;
            Ok(within)
        },
    ),
    must("rename needs access to both directories", "EACCES EACCES", || {
        mkdir("a", 0o777)?;
        mkdir("b", 0o755)?;
        chmod("a", 0o777)?;
        put("a/f", b"")?;
        put("b/g", b"")?;
        as_user(USER, USER, &[], || {
            words([said(rename("a/f", "b/f")), said(rename("b/g", "a/g"))])
        })
    }),
];
