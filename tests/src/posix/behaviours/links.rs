//! Hard and symbolic links.

use rustix::fs::{AtFlags, CWD, OFlags, linkat, lstat, readlink, rename, rmdir, stat, symlink, unlink};

use super::super::Behaviour;
use super::sys::{
    chmod, chown, content, create, create_with, inode, link, links, list, may, mkdir, mode, must, open,
    owner, put, said, shown, size, words, yes,
};

fn target(name: &str) -> String {
    shown(readlink(name, Vec::new()).map(|target| target.to_string_lossy().into_owned()))
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("a hard link is the same file", "yes 2 2 more", || {
        put("f", b"")?;
        link("f", "g")?;
        put("g", b"more")?;
        words([
            yes(inode("f")? == inode("g")?),
            links("f"),
            links("g"),
            content("f"),
        ])
    }),
    must("a hard link has the same mode and owner", "600 5:6 600", || {
        put("f", b"")?;
        link("f", "g")?;
        let before = links("f");
        chmod("g", 0o600)?;
        chown("f", 5, 6)?;
        assert_eq!(before, "2");
        words([mode("f"), owner("g"), mode("g")])
    }),
    must("link counts as names are removed", "3 2 1", || {
        put("f", b"")?;
        link("f", "g")?;
        link("g", "h")?;
        let three = links("f");
        unlink("g")?;
        let two = links("f");
        unlink("f")?;
        words([three, two, links("h")])
    }),
    must("link counts when a link is replaced", "1 1 gone", || {
        put("f", b"gone")?;
        link("f", "g")?;
        put("h", b"new")?;
        rename("h", "f")?;
        words([links("f"), links("g"), content("g")])
    }),
    must(
        "hard links that are refused",
        "EPERM EEXIST EEXIST ENOENT ENOTDIR",
        || {
            put("f", b"")?;
            mkdir("d", 0o755)?;
            words([
                said(link("d", "e")),
                said(link("f", "d")),
                said(link("f", "f")),
                said(link("no", "e")),
                said(link("f", "f/x")),
            ])
        },
    ),
    must("a hard link of a symbolic link", "yes no", || {
        put("f", b"")?;
        symlink("f", "s")?;
        link("s", "itself")?;
        linkat(CWD, "s", CWD, "followed", AtFlags::SYMLINK_FOLLOW)?;
        let is_link = |name| Ok::<_, anyhow::Error>(std::fs::symlink_metadata(name)?.is_symlink());
        words([yes(is_link("itself")?), yes(is_link("followed")?)])
    }),
    must("hard links into another directory", "2 abc", || {
        put("f", b"abc")?;
        mkdir("d", 0o755)?;
        link("f", "d/g")?;
        unlink("f")?;
        link("d/g", "h")?;
        words([links("h"), content("d/g")])
    }),
    may("link counts of directories", || {
        mkdir("d", 0o755)?;
        let empty = links("d");
        mkdir("d/a", 0o755)?;
        mkdir("d/b", 0o755)?;
        put("d/f", b"")?;
        let with_two = links("d");
        rmdir("d/a")?;
        rename("d/b", "b")?;
        words([empty, with_two, links("d")])
    }),
    must("the target of a symbolic link", "../any/where 12 777", || {
        symlink("../any/where", "s")?;
        words([target("s"), size("s"), mode("s")])
    }),
    must(
        "the longest target of a symbolic link",
        "ok 4095 ENAMETOOLONG",
        || {
            let made = said(symlink("t".repeat(4095).as_str(), "s"));
            words([
                made,
                target("s").len().to_string(),
                said(symlink("t".repeat(4096).as_str(), "r")),
            ])
        },
    ),
    must(
        "symbolic links that are refused",
        "ENOENT EEXIST EINVAL ENOENT",
        || {
            put("f", b"")?;
            words([
                said(symlink("", "s")),
                said(symlink("x", "f")),
                target("f"),
                target("no"),
            ])
        },
    ),
    must("a symbolic link is followed from its own directory", "up", || {
        put("f", b"up")?;
        mkdir("d", 0o755)?;
        symlink("../f", "d/s")?;
        Ok(content("d/s"))
    }),
    must("a symbolic link to a directory in a path", "in f", || {
        mkdir("d", 0o755)?;
        put("d/f", b"in")?;
        symlink("d", "s")?;
        words([content("s/f"), list("s/")])
    }),
    must("a symbolic link without a target", "ENOENT ok ENOENT", || {
        symlink("no", "s")?;
        words([said(stat("s")), said(lstat("s")), said(open("s", OFlags::RDONLY))])
    }),
    must(
        "creating a file through a symbolic link",
        "ok made EEXIST",
        || {
            symlink("target", "s")?;
            let made = said(create("s", 0o644));
            put("s", b"made")?;
            symlink("other", "r")?;
            words([
                made,
                content("target"),
                said(create_with("r", OFlags::EXCL, 0o644)),
            ])
        },
    ),
    must("symbolic links in a circle", "ELOOP ELOOP ok ELOOP", || {
        symlink("b", "a")?;
        symlink("a", "b")?;
        symlink("self", "self")?;
        words([
            said(stat("a")),
            said(create("self", 0o644)),
            said(lstat("a")),
            said(stat("a/x")),
        ])
    }),
    must("a chain of 40 symbolic links and one of 41", "end ELOOP", || {
        put("0", b"end")?;
        for number in 0..41 {
            symlink(number.to_string().as_str(), (number + 1).to_string().as_str())?;
        }
        words([content("40"), content("41")])
    }),
    must(
        "removing a symbolic link keeps its target",
        "ENOTDIR ok ok",
        || {
            mkdir("d", 0o755)?;
            symlink("d", "s")?;
            words([said(rmdir("s")), said(unlink("s")), said(stat("d"))])
        },
    ),
    must("a symbolic link that is replaced", "a one b two", || {
        put("a", b"one")?;
        put("b", b"two")?;
        symlink("a", "s")?;
        let (first, read) = (target("s"), content("s"));
        symlink("b", "new")?;
        rename("new", "s")?;
        words([first, read, target("s"), content("s")])
    }),
    must("a symbolic link that is removed and made again", "a b", || {
        symlink("a", "s")?;
        let first = target("s");
        unlink("s")?;
        symlink("b", "s")?;
        words([first, target("s")])
    }),
    must("chown of a symbolic link itself", "7:8 0:0", || {
        put("f", b"")?;
        symlink("f", "s")?;
        chown("s", 7, 8)?;
        words([owner("s"), owner("f")])
    }),
    must("chmod through a symbolic link", "600 777", || {
        put("f", b"")?;
        symlink("f", "s")?;
        chmod("s", 0o600)?;
        words([mode("f"), mode("s")])
    }),
];
