//! Modes: what a new file gets, when set-user-ID and set-group-ID bits go, and who may do what.

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, fallocate, mknodat, rename, rmdir, unlink,
};

use super::super::Behaviour;
use super::super::process::as_user;
use super::sys::{
    OTHER, USER, chmod, chown, content, create, create_with, execute, list, may, mkdir, mode, must, open,
    owner, put, put_program, said, shown, words,
};

fn umask(mask: u32) {
    rustix::process::umask(Mode::from_raw_mode(mask));
}

/// A file that everyone may write, with these bits besides.
fn writable(name: &str, bits: u32) -> anyhow::Result<()> {
    put(name, b"content")?;
    Ok(chmod(name, 0o777 | bits)?)
}

/// An empty directory of this mode, whatever the umask is.
fn directory(name: &str, mode: u32) -> anyhow::Result<()> {
    mkdir(name, 0o700)?;
    Ok(chmod(name, mode)?)
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("the umask", "644 640 666 755 700 644", || {
        create("a", 0o666)?;
        umask(0o027);
        create("b", 0o666)?;
        umask(0);
        create("c", 0o666)?;
        umask(0o022);
        mkdir("d", 0o777)?;
        umask(0o077);
        mkdir("e", 0o777)?;
        umask(0o022);
        mknodat(CWD, "p", FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
        words([mode("a"), mode("b"), mode("c"), mode("d"), mode("e"), mode("p")])
    }),
    must("special bits of new files", "6755 1755 4711", || {
        create("f", 0o6777)?;
        mkdir("d", 0o1777)?;
        create("g", 0o4711)?;
        words([mode("f"), mode("d"), mode("g")])
    }),
    must("chmod of all bits", "7777 0 7777 1000", || {
        put("f", b"")?;
        chmod("f", 0o7777)?;
        let all = mode("f");
        chmod("f", 0)?;
        directory("d", 0o7777)?;
        put("g", b"")?;
        chmod("g", 0o1000)?;
        words([all, mode("f"), mode("d"), mode("g")])
    }),
    must("a new file that its maker may not write", "ok ok 400 abc", || {
        directory("d", 0o777)?;
        as_user(USER, USER, &[], || {
            let made = create("d/f", 0o400);
            let words_before = said(made.as_ref().map_err(|error| *error));
            let written = said(rustix::io::write(made?, b"abc"));
            words([words_before, written, mode("d/f"), content("d/f")])
        })
    }),
    must("an open file stays open after chmod", "EACCES ok ok", || {
        put("f", b"content")?;
        chown("f", USER, USER)?;
        as_user(USER, USER, &[], || {
            let file = open("f", OFlags::RDWR)?;
            chmod("f", 0)?;
            words([
                said(open("f", OFlags::RDONLY)),
                said(rustix::io::write(&file, b"x")),
                said(rustix::io::pread(&file, &mut [0; 4], 0)),
            ])
        })
    }),
    must(
        "a write by a user clears set-user-ID and set-group-ID",
        "777 777",
        || {
            writable("f", 0o6000)?;
            writable("g", 0o4000)?;
            as_user(USER, USER, &[], || {
                for name in ["f", "g"] {
                    rustix::io::write(open(name, OFlags::WRONLY)?, b"x")?;
                }
                words([mode("f"), mode("g")])
            })
        },
    ),
    must(
        "a write by a user keeps set-group-ID without group execution",
        "2666",
        || {
            put("f", b"content")?;
            chmod("f", 0o2666)?;
            as_user(USER, USER, &[0], || {
                rustix::io::write(open("f", OFlags::WRONLY)?, b"x")?;
                Ok(mode("f"))
            })
        },
    ),
    must(
        "a write by root keeps set-user-ID and set-group-ID",
        "6777",
        || {
            writable("f", 0o6000)?;
            rustix::io::write(open("f", OFlags::WRONLY)?, b"x")?;
            Ok(mode("f"))
        },
    ),
    must(
        "ftruncate by a user clears set-user-ID and set-group-ID",
        "777",
        || {
            writable("f", 0o6000)?;
            as_user(USER, USER, &[], || {
                open("f", OFlags::WRONLY)?.set_len(3)?;
                Ok(mode("f"))
            })
        },
    ),
    must(
        "O_TRUNC by a user clears set-user-ID and set-group-ID",
        "777",
        || {
            writable("f", 0o6000)?;
            as_user(USER, USER, &[], || {
                open("f", OFlags::WRONLY | OFlags::TRUNC)?;
                Ok(mode("f"))
            })
        },
    ),
    may("fallocate by a user clears set-user-ID and set-group-ID", || {
        writable("f", 0o6000)?;
        as_user(USER, USER, &[], || {
            fallocate(open("f", OFlags::WRONLY)?, FallocateFlags::empty(), 0, 100)?;
            Ok(mode("f"))
        })
    }),
    may("a copy by a user clears set-user-ID and set-group-ID", || {
        writable("f", 0o6000)?;
        put("g", b"source")?;
        as_user(USER, USER, &[], || {
            let (from, to) = (open("g", OFlags::RDONLY)?, open("f", OFlags::WRONLY)?);
            rustix::fs::copy_file_range(&from, None, &to, None, 3)?;
            Ok(mode("f"))
        })
    }),
    must(
        "chown by root clears set-user-ID and set-group-ID",
        "755 2644 6755",
        || {
            put("f", b"")?;
            chmod("f", 0o6755)?;
            put("g", b"")?;
            chmod("g", 0o6644)?;
            directory("d", 0o6755)?;
            for name in ["f", "g", "d"] {
                chown(name, 5, 6)?;
            }
            words([mode("f"), mode("g"), mode("d")])
        },
    ),
    may("chown to the same owner and set-user-ID", || {
        put("f", b"")?;
        chmod("f", 0o6755)?;
        chown("f", 0, 0)?;
        let same = mode("f");
        chmod("f", 0o6755)?;
        std::os::unix::fs::chown("f", None, None)?;
        words([same, mode("f")])
    }),
    must(
        "chmod by a user outside of the file's group clears set-group-ID",
        "755 2755",
        || {
            put("f", b"")?;
            chown("f", USER, OTHER)?;
            put("g", b"")?;
            chown("g", USER, OTHER)?;
            as_user(USER, USER, &[], || Ok(said(chmod("f", 0o2755))))?;
            as_user(USER, USER, &[OTHER], || Ok(said(chmod("g", 0o2755))))?;
            words([mode("f"), mode("g")])
        },
    ),
    must(
        "files in a set-group-ID directory",
        "0:77 644 0:77 2755 0:0",
        || {
            directory("d", 0o2755)?;
            chown("d", 0, 77)?;
            put("d/f", b"")?;
            mkdir("d/e", 0o755)?;
            put("f", b"")?;
            words([owner("d/f"), mode("d/f"), owner("d/e"), mode("d/e"), owner("f")])
        },
    ),
    may("a set-group-ID file in a directory of another group", || {
        directory("d", 0o2777)?;
        chown("d", 0, 77)?;
        as_user(USER, USER, &[], || {
            create("d/f", 0o2755)?;
            create("d/g", 0o2644)?;
            words([owner("d/f"), mode("d/f"), mode("d/g")])
        })
    }),
    must(
        "removing others' files from a sticky directory",
        "EPERM EPERM EPERM ok",
        || {
            directory("d", 0o1777)?;
            for (name, uid) in [("d/other", OTHER), ("d/own", USER)] {
                put(name, b"")?;
                chown(name, uid, uid)?;
            }
            as_user(USER, USER, &[], || {
                words([
                    said(unlink("d/other")),
                    said(rename("d/other", "d/x")),
                    said(rename("d/own", "d/other")),
                    said(unlink("d/own")),
                ])
            })
        },
    ),
    must("a sticky directory's owner removes others' files", "ok", || {
        directory("d", 0o1777)?;
        chown("d", USER, USER)?;
        put("d/other", b"")?;
        as_user(USER, USER, &[], || Ok(said(unlink("d/other"))))
    }),
    must(
        "reading and writing by mode",
        "EACCES EACCES ok EACCES ok ok",
        || {
            for (name, mode) in [("none", 0o600), ("read", 0o604), ("all", 0o606)] {
                put(name, b"")?;
                chmod(name, mode)?;
            }
            as_user(USER, USER, &[], || {
                words([
                    said(open("none", OFlags::RDONLY)),
                    said(open("none", OFlags::WRONLY)),
                    said(open("read", OFlags::RDONLY)),
                    said(open("read", OFlags::RDWR)),
                    said(open("all", OFlags::RDWR)),
                    said(open("all", OFlags::WRONLY | OFlags::TRUNC)),
                ])
            })
        },
    ),
    must(
        "the owner's bits count before the group's and the others'",
        "EACCES EACCES ok",
        || {
            put("own", b"")?;
            chown("own", USER, USER)?;
            chmod("own", 0o077)?;
            put("group", b"")?;
            chown("group", 0, USER)?;
            chmod("group", 0o607)?;
            put("others", b"")?;
            chmod("others", 0o007)?;
            as_user(USER, USER, &[], || {
                words([
                    said(open("own", OFlags::RDONLY)),
                    said(open("group", OFlags::RDONLY)),
                    said(open("others", OFlags::RDWR)),
                ])
            })
        },
    ),
    must("a supplementary group gives access", "ok EACCES", || {
        put("f", b"")?;
        chown("f", 0, 77)?;
        chmod("f", 0o640)?;
        let read = || Ok(said(open("f", OFlags::RDONLY)));
        words([
            as_user(USER, USER, &[76, 77], read)?,
            as_user(USER, USER, &[76], read)?,
        ])
    }),
    must(
        "a directory that can be searched but not listed",
        "EACCES in EACCES",
        || {
            directory("d", 0o711)?;
            put("d/f", b"in")?;
            as_user(USER, USER, &[], || {
                words([list("d"), content("d/f"), said(create("d/g", 0o644))])
            })
        },
    ),
    must(
        "a directory that can be listed but not searched",
        "f EACCES EACCES",
        || {
            directory("d", 0o744)?;
            put("d/f", b"in")?;
            as_user(USER, USER, &[], || {
                words([list("d"), content("d/f"), said(std::env::set_current_dir("d"))])
            })
        },
    ),
    must(
        "a directory that can be written but not searched",
        "EACCES EACCES",
        || {
            directory("d", 0o722)?;
            put("d/f", b"in")?;
            as_user(USER, USER, &[], || {
                words([said(create("d/g", 0o644)), said(unlink("d/f"))])
            })
        },
    ),
    must(
        "a directory above that can't be searched",
        "EACCES EACCES",
        || {
            std::fs::create_dir_all("d/e")?;
            put("d/e/f", b"in")?;
            chmod("d", 0o700)?;
            as_user(USER, USER, &[], || {
                words([content("d/e/f"), said(rustix::fs::stat("d/e"))])
            })
        },
    ),
    must(
        "removing a file needs its directory, not the file",
        "ok EACCES",
        || {
            directory("d", 0o777)?;
            put("d/f", b"")?;
            chmod("d/f", 0)?;
            directory("e", 0o755)?;
            put("e/f", b"")?;
            chmod("e/f", 0o777)?;
            as_user(USER, USER, &[], || {
                words([said(unlink("d/f")), said(unlink("e/f"))])
            })
        },
    ),
    must("what only an owner may do", "EPERM EPERM ok EPERM", || {
        writable("f", 0)?;
        writable("g", 0)?;
        chown("g", USER, USER)?;
        as_user(USER, USER, &[], || {
            words([
                said(chmod("f", 0o644)),
                said(chown("f", USER, USER)),
                said(chmod("g", 0o644)),
                said(chown("g", OTHER, USER)),
            ])
        })
    }),
    must("root without a bit of the mode", "ok ok EACCES in", || {
        put_program("f")?;
        chmod("f", 0)?;
        directory("d", 0)?;
        put("d/f", b"in")?;
        words([
            said(open("f", OFlags::RDWR)),
            said(open("d", OFlags::RDONLY)),
            execute("./f"),
            content("d/f"),
        ])
    }),
    must("execution by mode", "exited 42 EACCES EACCES", || {
        for (name, mode) in [("all", 0o755), ("owner", 0o744), ("none", 0o644)] {
            put_program(name)?;
            chmod(name, mode)?;
        }
        as_user(USER, USER, &[], || {
            words([execute("./all"), execute("./owner"), execute("./none")])
        })
    }),
    must(
        "a program that can be executed but not read",
        "EACCES exited 42",
        || {
            put_program("f")?;
            chmod("f", 0o711)?;
            as_user(USER, USER, &[], || {
                words([said(open("f", OFlags::RDONLY)), execute("./f")])
            })
        },
    ),
    must(
        "access(2) and faccessat(2) as a user",
        "ok EACCES EACCES ENOENT",
        || {
            put("f", b"")?;
            as_user(USER, USER, &[], || {
                use rustix::fs::Access;
                words([
                    said(rustix::fs::access("f", Access::READ_OK | Access::EXISTS)),
                    said(rustix::fs::access("f", Access::WRITE_OK)),
                    said(rustix::fs::accessat(CWD, "f", Access::EXEC_OK, AtFlags::EACCESS)),
                    said(rustix::fs::access("no", Access::EXISTS)),
                ])
            })
        },
    ),
    must(
        "a user in a directory of root",
        "EACCES EACCES EACCES EACCES",
        || {
            put("f", b"")?;
            mkdir("d", 0o755)?;
            as_user(USER, USER, &[], || {
                words([
                    said(create("g", 0o644)),
                    said(mkdir("e", 0o755)),
                    said(rmdir("d")),
                    said(rustix::fs::symlink("f", "s")),
                ])
            })
        },
    ),
    must(
        "O_EXCL in a directory that its user can't write",
        "EEXIST EACCES",
        || {
            put("f", b"")?;
            as_user(USER, USER, &[], || {
                words([
                    said(create_with("f", OFlags::EXCL, 0o644)),
                    shown(create_with("g", OFlags::EXCL, 0o644).map(|_| "made")),
                ])
            })
        },
    ),
];
