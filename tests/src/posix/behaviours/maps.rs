//! Mapped files and programs.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

use anyhow::Result;
use rustix::fs::{OFlags, unlink};

use super::super::Behaviour;
use super::super::mapping::{Access, Mapping, Sharing};
use super::super::process::{Child, in_child};
use super::sys::{chmod, content, create, execute, must, open, program, put, put_program, said, words};

fn shared(file: &std::fs::File, length: usize) -> Result<Mapping> {
    Ok(Mapping::new(file, 0, length, Sharing::Shared, Access::Write)?)
}

fn text(mapping: &Mapping, length: usize) -> String {
    let mut bytes = vec![0; length];
    mapping.read(0, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn page_file(pages: usize) -> Result<std::fs::File> {
    put("f", &vec![b'a'; pages * 4096])?;
    Ok(open("f", OFlags::RDWR)?)
}

fn map(flags: OFlags, sharing: Sharing, access: Access) -> Result<String> {
    Ok(said(Mapping::new(&open("f", flags)?, 0, 4096, sharing, access)))
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("a write through a mapping is read at once", "xyz", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDWR)?;
        let mapping = shared(&file, 3)?;
        mapping.write(0, b"xyz");
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }),
    must("a write is seen through a mapping at once", "abc xyz", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDWR)?;
        let mapping = shared(&file, 3)?;
        let before = text(&mapping, 3);
        file.write_all_at(b"xyz", 0)?;
        words([before, text(&mapping, 3)])
    }),
    must(
        "a write through a mapping reaches a file that is opened later",
        "xyz xyz",
        || {
            put("f", b"abc")?;
            let file = open("f", OFlags::RDWR)?;
            let mapping = shared(&file, 3)?;
            mapping.write(0, b"xyz");
            let while_mapped = content("f");
            mapping.sync()?;
            drop(mapping);
            drop(file);
            words([while_mapped, content("f")])
        },
    ),
    must("a private mapping keeps its writes", "xyz abc", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDONLY)?;
        let mapping = Mapping::new(&file, 0, 3, Sharing::Private, Access::Write)?;
        mapping.write(0, b"xyz");
        words([text(&mapping, 3), content("f")])
    }),
    must("two processes share a mapping", "child parent", || {
        put("f", b"......")?;
        let mapping = shared(&open("f", OFlags::RDWR)?, 6)?;
        in_child(|| {
            shared(&open("f", OFlags::RDWR)?, 6)?.write(0, b"child ");
            Ok(String::new())
        })?;
        let seen = text(&mapping, 5);
        mapping.write(0, b"parent");
        words([
            seen,
            in_child(|| Ok(text(&shared(&open("f", OFlags::RDWR)?, 6)?, 6)))?,
        ])
    }),
    must("a mapping beyond the end of its file", "SIGBUS SIGBUS", || {
        let file = page_file(1)?;
        let mapping = shared(&file, 3 * 4096)?;
        words([
            in_child(|| {
                mapping.read(8192, &mut [0]);
                Ok("read".to_owned())
            })?,
            in_child(|| {
                mapping.write(4096, b"x");
                Ok("written".to_owned())
            })?,
        ])
    }),
    must("a mapping of a file that was truncated", "a SIGBUS", || {
        let file = page_file(2)?;
        let mapping = shared(&file, 8192)?;
        mapping.read(4096, &mut [0]);
        file.set_len(100)?;
        let kept = text(&mapping, 1);
        let beyond = in_child(|| {
            mapping.read(4096, &mut [0]);
            Ok("read".to_owned())
        })?;
        words([kept, beyond])
    }),
    must(
        "the rest of a mapped page after the end of its file",
        "zeros 3 abc",
        || {
            put("f", b"abc")?;
            let file = open("f", OFlags::RDWR)?;
            let mapping = shared(&file, 4096)?;
            let mut rest = [1; 4093];
            mapping.read(3, &mut rest);
            let zeros = if rest == [0; 4093] { "zeros" } else { "other" };
            // It is not part of the file.
            mapping.write(3, b"x");
            mapping.sync()?;
            words([zeros.to_owned(), file.metadata()?.len().to_string(), content("f")])
        },
    ),
    must("a mapping of a file that grows", "SIGBUS b", || {
        let file = page_file(1)?;
        let mapping = shared(&file, 8192)?;
        let before = in_child(|| {
            mapping.read(4096, &mut [0]);
            Ok("read".to_owned())
        })?;
        file.write_all_at(b"b", 4096)?;
        let mut byte = [0];
        mapping.read(4096, &mut byte);
        words([before, String::from_utf8_lossy(&byte).into_owned()])
    }),
    must("a mapping outlives its descriptor and its name", "abc", || {
        put("f", b"abc")?;
        let mapping = shared(&open("f", OFlags::RDWR)?, 3)?;
        unlink("f")?;
        Ok(text(&mapping, 3))
    }),
    must(
        "mappings that are refused",
        "EACCES ok EACCES EACCES ENODEV",
        || {
            put("f", b"abc")?;
            let directory = open(".", OFlags::RDONLY)?;
            words([
                map(OFlags::RDONLY, Sharing::Shared, Access::Write)?,
                map(OFlags::RDONLY, Sharing::Private, Access::Write)?,
                map(OFlags::WRONLY, Sharing::Shared, Access::Write)?,
                map(OFlags::WRONLY, Sharing::Private, Access::Read)?,
                said(Mapping::new(&directory, 0, 4096, Sharing::Private, Access::Read)),
            ])
        },
    ),
    must(
        "mappings at odd positions and of no length",
        "EINVAL EINVAL",
        || {
            let file = page_file(1)?;
            words([
                said(Mapping::new(&file, 1, 4096, Sharing::Shared, Access::Read)),
                said(Mapping::new(&file, 0, 0, Sharing::Shared, Access::Read)),
            ])
        },
    ),
    must("a mapping from the middle of a file", "b", || {
        put("f", &[[b'a'; 4096], [b'b'; 4096]].concat())?;
        let mapping = Mapping::new(
            &open("f", OFlags::RDONLY)?,
            4096,
            4096,
            Sharing::Shared,
            Access::Read,
        )?;
        Ok(text(&mapping, 1))
    }),
    must("a mapping of a file with a hole is written", "1048577 x", || {
        let file = create("f", 0o644)?;
        file.set_len((1 << 20) + 1)?;
        shared(&file, (1 << 20) + 1)?.write(1 << 20, b"x");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1 << 20)?;
        words([super::sys::size("f"), String::from_utf8_lossy(&byte).into_owned()])
    }),
    must("a program is written and executed", "exited 42", || {
        put_program("f")?;
        Ok(execute("./f"))
    }),
    must("a program that is open for writing", "ETXTBSY exited 42", || {
        put_program("f")?;
        let writer = open("f", OFlags::WRONLY)?;
        let busy = execute("./f");
        drop(writer);
        words([busy, execute("./f")])
    }),
    must("a program that is rewritten", "exited 42 exited 7", || {
        put_program("f")?;
        let first = execute("./f");
        let mut other = program();
        // The operand of the instruction that loads the exit code, after the headers of 120 bytes.
        other[121] = 7;
        put("f", &other)?;
        words([first, execute("./f")])
    }),
    must(
        "a program that runs can't be written",
        "ETXTBSY ETXTBSY ok",
        || {
            // busybox's cat, copied, waits for its input.
            let copied = std::fs::copy("/bin/busybox", "cat");
            copied.or_else(|_| std::fs::copy("/bin/cat", "cat"))?;
            chmod("cat", 0o755)?;
            let mut running = std::process::Command::new("./cat")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()?;
            let mut input = running
                .stdin
                .take()
                .unwrap_or_else(|| unreachable!("it is a pipe"));
            input.write_all(b"x")?;
            if let Some(output) = running.stdout.as_mut() {
                output.read_exact(&mut [0])?;
            }
            let (write, truncate) = (
                said(open("cat", OFlags::WRONLY)),
                said(nix::unistd::truncate("cat", 0)),
            );
            drop(input);
            running.wait()?;
            words([write, truncate, said(open("cat", OFlags::WRONLY))])
        },
    ),
    must("a script is executed", "exited 3", || {
        put("f", b"#!/bin/sh\nexit 3\n")?;
        chmod("f", 0o755)?;
        Ok(execute("./f"))
    }),
    must("what can't be executed", "ENOEXEC EACCES ENOENT", || {
        put("f", b"\x7fELF\x02nonsense")?;
        chmod("f", 0o755)?;
        put("g", b"#!/no/such/interpreter\n")?;
        chmod("g", 0o755)?;
        words([execute("./f"), execute("."), execute("./g")])
    }),
    must(
        "many processes write their parts of a mapping",
        "4096 right",
        || {
            let file = page_file(4)?;
            let children: Vec<Child> = (0..4_u8)
                .map(|number| {
                    let file = &file;
                    Child::start(move || {
                        let mapping = shared(file, 4 * 4096)?;
                        for at in (usize::from(number)..4 * 4096).step_by(4) {
                            mapping.write(at, &[number]);
                        }
                        Ok(String::new())
                    })
                })
                .collect::<Result<_>>()?;
            children
                .into_iter()
                .try_for_each(|child| child.finish().map(drop))?;
            let bytes = std::fs::read("f")?;
            let right = bytes.chunks(4).filter(|chunk| **chunk == [0, 1, 2, 3]).count();
            Ok(format!("{right} right"))
        },
    ),
];
