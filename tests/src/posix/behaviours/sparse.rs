//! Sizes, holes and allocation.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use anyhow::Result;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};

use super::super::Behaviour;
use super::super::mapping::{Access, Mapping, Sharing};
use super::super::process::as_user;
use super::sys::{USER, content, create, may, must, open, put, said, shown, size, words, yes};

const MIB: u64 = 1 << 20;
const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// A file of 2 MiB whose first MiB is a hole and whose second is data.
fn half_hole() -> Result<File> {
    let file = create("f", 0o644)?;
    file.write_all_at(&vec![b'x'; 1 << 20], MIB)?;
    file.sync_all()?;
    Ok(file)
}

fn blocks(file: &File) -> Result<u64> {
    Ok(file.metadata()?.blocks())
}

/// "zeros", or the number of other bytes in the range.
fn zeros(file: &File, at: u64, length: usize) -> Result<String> {
    let mut bytes = vec![1; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(match bytes.iter().filter(|byte| **byte != 0).count() {
        0 => "zeros".to_owned(),
        other => format!("{other} other bytes"),
    })
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("a hole reads as zeros", "zeros zeros 2097152", || {
        let file = half_hole()?;
        words([zeros(&file, 0, 4096)?, zeros(&file, MIB - 4096, 4096)?, size("f")])
    }),
    must(
        "where data and holes begin",
        "1048576 0 2097152 1500000 ENXIO",
        || {
            let file = half_hole()?;
            words([
                shown(seek(&file, SeekFrom::Data(0))),
                shown(seek(&file, SeekFrom::Hole(0))),
                shown(seek(&file, SeekFrom::Hole(MIB))),
                shown(seek(&file, SeekFrom::Data(1_500_000))),
                shown(seek(&file, SeekFrom::Data(2 * MIB))),
            ])
        },
    ),
    must("where data begins in a file without any", "ENXIO 0", || {
        let file = create("f", 0o644)?;
        file.set_len(MIB)?;
        words([
            shown(seek(&file, SeekFrom::Data(0))),
            shown(seek(&file, SeekFrom::Hole(0))),
        ])
    }),
    must("blocks of a file with a hole", "yes yes", || {
        let file = half_hole()?;
        let used = blocks(&file)?;
        words([yes(used >= 2048), yes(used < 2048 + 64)])
    }),
    must("a file of a TiB without data", "1099511627776 0 zeros", || {
        let file = create("f", 0o644)?;
        file.set_len(MIB << 20)?;
        words([
            size("f"),
            blocks(&file)?.to_string(),
            zeros(&file, MIB << 19, 4096)?,
        ])
    }),
    must("a file that shrinks and grows has zeros", "100 zeros a", || {
        put("f", &[b'a'; 100])?;
        let file = open("f", OFlags::RDWR)?;
        file.set_len(10)?;
        file.set_len(100)?;
        let mut first = [0];
        file.read_exact_at(&mut first, 9)?;
        words([
            size("f"),
            zeros(&file, 10, 90)?,
            String::from_utf8_lossy(&first).into_owned(),
        ])
    }),
    must(
        "a mapped file that shrinks and grows has zeros",
        "zeros zeros",
        || {
            put("f", &[b'a'; 8192])?;
            let file = open("f", OFlags::RDWR)?;
            let mapping = Mapping::new(&file, 0, 8192, Sharing::Shared, Access::Write)?;
            mapping.write(5000, b"b");
            file.set_len(10)?;
            file.set_len(8192)?;
            let mut seen = [1; 4096];
            mapping.read(4096, &mut seen);
            let mapped = if seen == [0; 4096] { "zeros" } else { "old bytes" };
            words([mapped.to_owned(), zeros(&file, 10, 8182)?])
        },
    ),
    must(
        "a write beyond the end leaves zeros before it",
        "zeros 5001",
        || {
            let file = create("f", 0o644)?;
            file.write_all_at(b"abc", 0)?;
            file.write_all_at(b"x", 5000)?;
            words([zeros(&file, 3, 4997)?, size("f")])
        },
    ),
    must("a read at the end and beyond it", "0 0 3", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDONLY)?;
        words([
            shown(file.read_at(&mut [0; 8], 3)),
            shown(file.read_at(&mut [0; 8], 1 << 40)),
            shown(file.read_at(&mut [0; 8], 0)),
        ])
    }),
    must("truncate by path", "2 ab 4 EISDIR ENOENT", || {
        put("f", b"abc")?;
        nix::unistd::truncate("f", 2)?;
        let (two, text) = (size("f"), content("f"));
        nix::unistd::truncate("f", 4)?;
        words([
            two,
            text,
            size("f"),
            said(nix::unistd::truncate(".", 0)),
            said(nix::unistd::truncate("no", 0)),
        ])
    }),
    must("truncation that is refused", "EINVAL EINVAL EACCES", || {
        put("f", b"abc")?;
        let reader = open("f", OFlags::RDONLY)?;
        let writer = open("f", OFlags::WRONLY)?;
        words([
            said(rustix::fs::ftruncate(&reader, 0)),
            said(nix::unistd::ftruncate(&writer, -1)),
            as_user(USER, USER, &[], || Ok(said(nix::unistd::truncate("f", 0))))?,
        ])
    }),
    must("a punched hole", "ok zeros x 2097152 yes", || {
        let file = half_hole()?;
        let before = blocks(&file)?;
        let punched = said(fallocate(&file, HOLE, MIB, MIB / 2));
        let mut byte = [0];
        file.read_exact_at(&mut byte, MIB + MIB / 2)?;
        words([
            punched,
            zeros(&file, MIB, 1 << 19)?,
            String::from_utf8_lossy(&byte).into_owned(),
            size("f"),
            yes(blocks(&file)? < before),
        ])
    }),
    must("a hole in a part of a page", "aa\0\0a", || {
        put("f", b"aaaaa")?;
        fallocate(open("f", OFlags::RDWR)?, HOLE, 2, 2)?;
        Ok(content("f").replace('\0', "\\0").replace("\\0", "\0"))
    }),
    must("a hole beyond the end", "ok 5", || {
        put("f", b"aaaaa")?;
        words([
            said(fallocate(open("f", OFlags::RDWR)?, HOLE, 3000, 9000)),
            size("f"),
        ])
    }),
    must("a hole is seen through a mapping", "yes", || {
        put("f", &[b'a'; 8192])?;
        let file = open("f", OFlags::RDWR)?;
        let mapping = Mapping::new(&file, 0, 8192, Sharing::Shared, Access::Read)?;
        let mut bytes = [0; 8192];
        mapping.read(0, &mut bytes);
        fallocate(&file, HOLE, 1000, 6000)?;
        mapping.read(0, &mut bytes);
        Ok(yes(bytes[1000..7000].iter().all(|byte| *byte == 0)
            && bytes[..1000]
                .iter()
                .chain(&bytes[7000..])
                .all(|byte| *byte == b'a')))
    }),
    must(
        "fallocate extends a file with zeros",
        "ok 1000000 zeros abc yes",
        || {
            put("f", b"abc")?;
            let file = open("f", OFlags::RDWR)?;
            let done = said(fallocate(&file, FallocateFlags::empty(), 0, 1_000_000));
            let mut text = [0; 3];
            file.read_exact_at(&mut text, 0)?;
            words([
                done,
                size("f"),
                zeros(&file, 3, 999_997)?,
                String::from_utf8_lossy(&text).into_owned(),
                yes(blocks(&file)? >= 1952),
            ])
        },
    ),
    must("fallocate that keeps the size", "ok 3 yes", || {
        put("f", b"abc")?;
        let file = open("f", OFlags::RDWR)?;
        let done = said(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB));
        words([done, size("f"), yes(blocks(&file)? >= 2048)])
    }),
    may("FALLOC_FL_ZERO_RANGE", || {
        put("f", b"abcdef")?;
        let done = said(fallocate(
            open("f", OFlags::RDWR)?,
            FallocateFlags::ZERO_RANGE,
            1,
            3,
        ));
        words([done, content("f").replace('\0', "0"), size("f")])
    }),
    may("FALLOC_FL_COLLAPSE_RANGE", || {
        put("f", &[[b'a'; 4096], [b'b'; 4096]].concat())?;
        let file = open("f", OFlags::RDWR)?;
        let done = said(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096));
        words([done, size("f")])
    }),
    may("FALLOC_FL_INSERT_RANGE", || {
        put("f", &[b'a'; 8192])?;
        let file = open("f", OFlags::RDWR)?;
        let done = said(fallocate(&file, FallocateFlags::INSERT_RANGE, 4096, 4096));
        words([done, size("f")])
    }),
    must(
        "fallocate that is refused",
        "EINVAL EINVAL EBADF EOPNOTSUPP",
        || {
            put("f", b"abc")?;
            let file = open("f", OFlags::RDWR)?;
            let nix_fallocate =
                |at, length| nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), at, length);
            words([
                said(nix_fallocate(0, 0)),
                said(nix_fallocate(-1, 1)),
                said(fallocate(
                    open("f", OFlags::RDONLY)?,
                    FallocateFlags::empty(),
                    0,
                    1,
                )),
                said(fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 1)),
            ])
        },
    ),
    may("fallocate of a directory and of a FIFO", || {
        let directory = open(".", OFlags::RDONLY)?;
        words([said(fallocate(&directory, FallocateFlags::empty(), 0, 1))])
    }),
    may("sizes that are too large", || {
        let file = create("f", 0o644)?;
        words([
            said(file.set_len(u64::try_from(i64::MAX)?)),
            said(file.write_at(b"x", u64::try_from(i64::MAX)? - 1)),
            said(nix::fcntl::fallocate(
                &file,
                nix::fcntl::FallocateFlags::empty(),
                i64::MAX - 1,
                2,
            )),
        ])
    }),
    must("a small file's data and hole", "0 5", || {
        put("f", b"aaaaa")?;
        let file = open("f", OFlags::RDONLY)?;
        words([
            shown(seek(&file, SeekFrom::Data(0))),
            shown(seek(&file, SeekFrom::Hole(0))),
        ])
    }),
    must("positions of lseek", "7 2 5 EINVAL EINVAL 0", || {
        put("f", b"aaaaa")?;
        let file = open("f", OFlags::RDWR)?;
        words([
            shown(seek(&file, SeekFrom::End(2))),
            shown(seek(&file, SeekFrom::Start(2))),
            shown(seek(&file, SeekFrom::Current(3))),
            shown(seek(&file, SeekFrom::Current(-6))),
            shown(seek(&file, SeekFrom::End(-6))),
            shown(rustix::io::read(&file, &mut [0; 1])),
        ])
    }),
];
