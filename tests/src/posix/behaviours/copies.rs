//! Copies inside of the kernel: copy_file_range(2), sendfile(2), splice(2).

use std::fs::File;
use std::io::Read as _;

use anyhow::Result;
use rustix::fs::{OFlags, copy_file_range, ioctl_ficlone, sendfile};
use rustix::pipe::{SpliceFlags, splice};

use super::super::Behaviour;
use super::sys::{content, create, may, must, open, put, said, shown, size, words, yes};

/// A file "f" with letters and an empty file "g".
fn files() -> Result<(File, File)> {
    put("f", b"abcdefgh")?;
    Ok((open("f", OFlags::RDWR)?, create("g", 0o644)?))
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("copy_file_range between files", "8 abcdefgh 0", || {
        let (from, to) = files()?;
        let copied = shown(copy_file_range(&from, None, &to, None, 8));
        words([
            copied,
            content("g"),
            shown(copy_file_range(&from, None, &to, None, 8)),
        ])
    }),
    must("copy_file_range at positions", "3 ..cde 5 5", || {
        let (from, to) = files()?;
        rustix::io::write(&to, b"..")?;
        let (mut at, mut target) = (2, 2);
        let copied = shown(copy_file_range(&from, Some(&mut at), &to, Some(&mut target), 3));
        words([copied, content("g"), at.to_string(), target.to_string()])
    }),
    must("copy_file_range beyond the end of its source", "2 0 gh", || {
        let (from, to) = files()?;
        let copied = shown(copy_file_range(&from, Some(&mut 6), &to, None, 100));
        words([
            copied,
            shown(copy_file_range(&from, Some(&mut 50), &to, None, 100)),
            content("g"),
        ])
    }),
    must("copy_file_range inside of a file", "2 abcdefab EINVAL", || {
        let (from, _) = files()?;
        let copied = shown(copy_file_range(&from, Some(&mut 0), &from, Some(&mut 6), 2));
        words([
            copied,
            content("f"),
            shown(copy_file_range(&from, Some(&mut 0), &from, Some(&mut 2), 4)),
        ])
    }),
    must(
        "copy_file_range over what was read before",
        "XXXXXXXX abcdXXXX",
        || {
            let (from, to) = files()?;
            put("g", b"XXXXXXXX")?;
            let before = content("g");
            copy_file_range(&from, None, &to, None, 4)?;
            words([before, content("g")])
        },
    ),
    must("copy_file_range of what was just written", "new", || {
        let (from, to) = files()?;
        rustix::io::pwrite(&from, b"new", 0)?;
        copy_file_range(&from, None, &to, None, 3)?;
        Ok(content("g"))
    }),
    must("copies that are refused", "EBADF EBADF EBADF EISDIR", || {
        let (from, to) = files()?;
        let reader = open("g", OFlags::RDONLY)?;
        let writer = open("f", OFlags::WRONLY)?;
        let append = open("g", OFlags::WRONLY | OFlags::APPEND)?;
        let directory = open(".", OFlags::RDONLY)?;
        words([
            said(copy_file_range(&from, None, &reader, None, 1)),
            said(copy_file_range(&writer, None, &to, None, 1)),
            said(copy_file_range(&from, None, &append, None, 1)),
            said(copy_file_range(&directory, None, &to, None, 1)),
        ])
    }),
    must("copy_file_range of a MiB", "yes", || {
        let bytes: Vec<u8> = (0..1_u32 << 20).map(|number| number.to_le_bytes()[1]).collect();
        put("f", &bytes)?;
        let (from, to) = (open("f", OFlags::RDONLY)?, create("g", 0o644)?);
        let mut left = bytes.len();
        while left > 0 {
            match copy_file_range(&from, None, &to, None, left)? {
                0 => break,
                copied => left -= copied,
            }
        }
        Ok(yes(std::fs::read("g")? == bytes))
    }),
    must(
        "a copy by a library keeps content and mode",
        "abcdefgh 750",
        || {
            drop(files()?);
            super::sys::chmod("f", 0o750)?;
            std::fs::copy("f", "h")?;
            words([content("h"), super::sys::mode("h")])
        },
    ),
    must("sendfile between files", "5 defgh 8", || {
        let (from, to) = files()?;
        let mut at = 3;
        let sent = shown(sendfile(&to, &from, Some(&mut at), 100));
        words([sent, content("g"), at.to_string()])
    }),
    must("sendfile to a pipe", "8 abcdefgh", || {
        let (from, _) = files()?;
        let (mut reader, writer) = std::io::pipe()?;
        let sent = shown(sendfile(&writer, &from, None, 8));
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        words([sent, text])
    }),
    must("splice from a file to a pipe and to a file", "4 4 cdef", || {
        let (from, to) = files()?;
        let (reader, writer) = std::io::pipe()?;
        let into = splice(&from, Some(&mut 2), &writer, None, 4, SpliceFlags::empty());
        let out = splice(&reader, None, &to, Some(&mut 0), 4, SpliceFlags::empty());
        words([shown(into), shown(out), content("g")])
    }),
    may("FICLONE", || {
        let (from, to) = files()?;
        words([said(ioctl_ficlone(&to, &from)), size("g")])
    }),
];
