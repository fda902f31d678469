//! Owners and groups, and what a user may do to them.

use std::os::unix::fs::fchown;

use rustix::fs::{OFlags, symlink};

use super::super::Behaviour;
use super::super::process::{as_user, in_child};
use super::sys::{
    OTHER, USER, chmod, chown, content, create, link, may, mkdir, mode, must, open, owner, put, said, words,
};

pub const BEHAVIOURS: &[Behaviour] = &[
    must("root changes owners", "1000:1000 5:1000 5:6", || {
        put("f", b"")?;
        chown("f", USER, USER)?;
        let first = owner("f");
        std::os::unix::fs::chown("f", Some(5), None)?;
        let second = owner("f");
        std::os::unix::fs::chown("f", None, Some(6))?;
        words([first, second, owner("f")])
    }),
    must("the largest ids", "4294967294:4294967294 65536:65537", || {
        put("f", b"")?;
        chown("f", u32::MAX - 1, u32::MAX - 1)?;
        put("g", b"")?;
        chown("g", 65_536, 65_537)?;
        words([owner("f"), owner("g")])
    }),
    must(
        "a user's file belongs to the user",
        "1000:2000 1000:2000 1000:2000",
        || {
            mkdir("d", 0o755)?;
            chmod("d", 0o777)?;
            as_user(USER, OTHER, &[], || {
                put("d/f", b"")?;
                mkdir("d/e", 0o755)?;
                symlink("x", "d/s")?;
                words([owner("d/f"), owner("d/e"), owner("d/s")])
            })
        },
    ),
    must("a user gives files to groups", "ok EPERM ok 1000:77", || {
        put("f", b"")?;
        chown("f", USER, USER)?;
        as_user(USER, USER, &[77], || {
            words([
                said(chown("f", USER, 77)),
                said(chown("f", USER, OTHER)),
                said(chown("f", USER, 77)),
                owner("f"),
            ])
        })
    }),
    must("a user does not give files away", "EPERM EPERM EPERM", || {
        put("own", b"")?;
        chown("own", USER, USER)?;
        put("other", b"")?;
        as_user(USER, USER, &[77], || {
            words([
                said(chown("own", OTHER, USER)),
                said(chown("other", USER, USER)),
                said(chown("other", 0, 77)),
            ])
        })
    }),
    must(
        "a user's chown clears set-user-ID and set-group-ID",
        "755 1000:77",
        || {
            put("f", b"")?;
            chown("f", USER, USER)?;
            chmod("f", 0o6755)?;
            as_user(USER, USER, &[77], || {
                chown("f", USER, 77)?;
                words([mode("f"), owner("f")])
            })
        },
    ),
    must("chown through a symbolic link", "5:6 0:0", || {
        put("f", b"")?;
        symlink("f", "s")?;
        std::os::unix::fs::chown("s", Some(5), Some(6))?;
        words([owner("f"), owner("s")])
    }),
    must("chown of what is missing", "ENOENT ENOTDIR", || {
        put("f", b"")?;
        words([said(chown("no", 1, 1)), said(chown("f/x", 1, 1))])
    }),
    must("fchown needs more than O_PATH", "EBADF ok", || {
        put("f", b"")?;
        words([
            said(fchown(open("f", OFlags::PATH)?, Some(1), Some(1))),
            said(fchown(open("f", OFlags::RDONLY)?, Some(1), Some(1))),
        ])
    }),
    must("fchmod and fchown of an open file", "640 5:6", || {
        let file = create("f", 0o644)?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o640))?;
        fchown(&file, Some(5), Some(6))?;
        words([mode("f"), owner("f")])
    }),
    must(
        "the owner changes while a user has the file open",
        "ok new EACCES",
        || {
            put("f", b"old")?;
            chmod("f", 0o600)?;
            chown("f", USER, USER)?;
            as_user(USER, USER, &[], || {
                let file = open("f", OFlags::RDWR)?;
                // Root is needed to give it away, so its mode takes the user's access.
                chmod("f", 0)?;
                let write = said(rustix::io::write(&file, b"new"));
                chmod("f", 0o600)?;
                let text = content("f");
                chmod("f", 0)?;
                words([write, text, said(open("f", OFlags::RDONLY))])
            })
        },
    ),
    must("the user of file access alone", "EACCES ok 1000:1000", || {
        put("f", b"")?;
        chmod("f", 0o600)?;
        mkdir("d", 0o755)?;
        chmod("d", 0o777)?;
        in_child(|| {
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(USER));
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(USER));
            let refused = said(open("f", OFlags::RDONLY));
            words([refused, said(create("d/f", 0o644)), owner("d/f")])
        })
    }),
    must("the group of a new file is the process's", "0:55 0:0", || {
        in_child(|| {
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(55));
            create("f", 0o644)?;
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
            create("g", 0o644)?;
            words([owner("f"), owner("g")])
        })
    }),
    may("a hard link to another's file", || {
        mkdir("d", 0o755)?;
        chmod("d", 0o777)?;
        for (name, mode) in [("d/read", 0o644), ("d/write", 0o666), ("d/setuid", 0o4777)] {
            put(name, b"")?;
            chmod(name, mode)?;
        }
        as_user(USER, USER, &[], || {
            words([
                said(link("d/read", "d/a")),
                said(link("d/write", "d/b")),
                said(link("d/setuid", "d/c")),
            ])
        })
    }),
    may("another's symbolic link in a sticky directory", || {
        mkdir("d", 0o755)?;
        chmod("d", 0o1777)?;
        put("f", b"read")?;
        symlink("../f", "d/s")?;
        chown("d/s", OTHER, OTHER)?;
        as_user(USER, USER, &[], || Ok(content("d/s")))
    }),
];
