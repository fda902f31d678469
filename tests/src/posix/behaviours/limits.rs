//! Limits of a process.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::Result;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::super::Behaviour;
use super::super::process::in_child;
use super::sys::{create, must, open, put, said, shown, size, words};

/// Runs `body` with RLIMIT_FSIZE of 1,000 bytes and without SIGXFSZ, which kills by default.
fn with_limit(body: impl FnOnce(&File) -> Result<String>) -> Result<String> {
    let file = create("f", 0o644)?;
    in_child(|| {
        // The blocked signal stays pending.
        SigSet::from(Signal::SIGXFSZ).thread_block()?;
        setrlimit(Resource::RLIMIT_FSIZE, 1000, 1000)?;
        body(&file)
    })
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("a write beyond RLIMIT_FSIZE kills", "SIGXFSZ", || {
        let file = create("f", 0o644)?;
        in_child(|| {
            setrlimit(Resource::RLIMIT_FSIZE, 1000, 1000)?;
            file.write_all_at(b"x", 1000)?;
            Ok("written".to_owned())
        })
    }),
    must(
        "a write beyond RLIMIT_FSIZE without the signal",
        "EFBIG 0",
        || with_limit(|file| words([said(file.write_at(b"x", 1000)), size("f")])),
    ),
    must(
        "a write that reaches RLIMIT_FSIZE is short",
        "1000 1000 100",
        || {
            with_limit(|file| {
                let whole = shown(file.write_at(&[b'x'; 1500], 0));
                words([whole, size("f"), shown(file.write_at(&[b'x'; 500], 900))])
            })
        },
    ),
    must("ftruncate beyond RLIMIT_FSIZE", "EFBIG ok", || {
        with_limit(|file| words([said(file.set_len(1001)), said(file.set_len(1000))]))
    }),
    must("fallocate beyond RLIMIT_FSIZE", "EFBIG ok", || {
        with_limit(|file| {
            words([
                said(fallocate(file, FallocateFlags::empty(), 0, 1001)),
                said(fallocate(file, FallocateFlags::empty(), 0, 1000)),
            ])
        })
    }),
    must("a copy that reaches RLIMIT_FSIZE", "1000 EFBIG", || {
        put("g", &[b'x'; 4000])?;
        let source = open("g", OFlags::RDONLY)?;
        with_limit(|file| {
            let mut at = 0;
            let mut copy = || {
                shown(rustix::fs::copy_file_range(
                    &source,
                    None,
                    file,
                    Some(&mut at),
                    2000,
                ))
            };
            words([copy(), copy()])
        })
    }),
    must("RLIMIT_NOFILE", "EMFILE", || {
        put("f", b"")?;
        in_child(|| {
            setrlimit(Resource::RLIMIT_NOFILE, 3, 3)?;
            Ok(said(open("f", OFlags::RDONLY)))
        })
    }),
];
