//! A guest with two disks, which are files of the host: what the guest reads is in the file, and what it writes
//! is there afterwards. Run with both engines of the device, and timed.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use serde_json::{Value, json};

use super::vm::DEADLINE;
use super::workload::Parameters;
use super::{Build, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[
    test("a disk of 64 MiB is read, written and discarded", |build| {
        read_and_write(build, "")
    }),
    test("the disk without io_uring and with 2 queues", |build| {
        read_and_write(build, ",queues=2,blocking")
    }),
];

/// Reads and writes the disk and reports how long that took.
pub const WORKLOAD: Workload = Workload {
    name: "disk",
    run: use_disks,
};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16 * 1024;
/// Blocks at the end that the guest discards.
const DISCARDED: u64 = 256;
const RANDOM_READS: u32 = 512;
/// How many threads read at once.
const DEPTH: u32 = 32;

/// Block `number` before, and after the guest has written it.
fn content(number: u64, is_written: bool) -> Vec<u8> {
    let word = if is_written { !number } else { number };
    word.to_le_bytes().repeat(BLOCK / 8)
}

fn read_and_write(build: &Build, options: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (path, other) = (directory.path().join("disk"), directory.path().join("other"));
    let mut file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)?;
    for number in 0..BLOCKS {
        file.write_all(&content(number, false))?;
    }
    fs::write(&other, [0; 2 * BLOCK])?;
    let (disk, read_only) = (
        format!("{}{options}", path.display()),
        format!("{},ro", other.display()),
    );
    let guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments: &["--vcpus", "2", "--disk", &disk, "--disk", &read_only],
        ..Options::default()
    })?;
    let report = guest.finish(DEADLINE)?;
    for (what, took) in report.as_object().context("the report is no object")? {
        println!("        {what}: {took} µs");
    }
    for number in 0..BLOCKS {
        let mut found = vec![0; BLOCK];
        file.read_exact_at(&mut found, number * BLOCK as u64)?;
        let expected = if number < BLOCKS - DISCARDED {
            content(number, true)
        } else {
            vec![0; BLOCK]
        };
        ensure!(found == expected, "block {number} of the host's file");
    }
    Ok(())
}

/// The guest's half.
fn use_disks(_: &Parameters) -> Result<Value> {
    let disk = disk_with("disk-1")?;
    let sectors: u64 = attribute(&disk, "size")?.parse()?;
    ensure!(sectors * 512 == BLOCKS * BLOCK as u64, "{sectors} sectors");
    let other = disk_with("disk-2")?;
    ensure!(attribute(&other, "ro")? == "1", "the second disk can be written");
    ensure!(attribute(&disk, "ro")? == "0", "the first disk can't be written");
    let file = File::options()
        .read(true)
        .write(true)
        .open(format!("/dev/{disk}"))?;
    let read = timed(|| read_all(&file))?;
    fs::write(format!("/sys/block/{disk}/queue/read_ahead_kb"), "0")?;
    let one_by_one = timed(|| read_at_random(&file, RANDOM_READS, 1))?;
    let at_once = timed(|| read_at_random(&file, RANDOM_READS / DEPTH, DEPTH))?;
    let write = timed(|| write_all(&file))?;
    let end = (BLOCKS - DISCARDED) * BLOCK as u64;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, end, DISCARDED * BLOCK as u64).context("discarding blocks")?;
    file.sync_all()?;
    Ok(json!({
        "sequential read of a MiB": per(read, BLOCKS / 256),
        "sequential write of a MiB, with one fsync": per(write, BLOCKS / 256),
        "random read of 4 KiB": per(one_by_one, RANDOM_READS.into()),
        "random read of 4 KiB, 32 at once": per(at_once, RANDOM_READS.into()),
    }))
}

/// The mean of `count` operations that took `total`, in microseconds.
fn per(total: Duration, count: u64) -> u64 {
    u64::try_from(total.as_micros()).unwrap_or(u64::MAX) / count
}

fn timed(action: impl FnOnce() -> Result<()>) -> Result<Duration> {
    // What the guest has cached would not be read again.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let started = Instant::now();
    action()?;
    Ok(started.elapsed())
}

fn read_all(mut file: &File) -> Result<()> {
    let mut found = vec![0; BLOCK];
    for number in 0..BLOCKS {
        file.read_exact(&mut found)?;
        ensure!(found == content(number, false), "block {number}");
    }
    Ok(())
}

fn write_all(file: &File) -> Result<()> {
    for number in 0..BLOCKS {
        file.write_all_at(&content(number, true), number * BLOCK as u64)?;
    }
    Ok(file.sync_all()?)
}

/// `threads` threads read `count` blocks each, one after the other.
fn read_at_random(file: &File, count: u32, threads: u32) -> Result<()> {
    fadvise(file, 0, None, Advice::Random)?;
    std::thread::scope(|scope| {
        let read = |seed: u32| -> Result<()> {
            let mut number = u64::from(seed);
            for _ in 0..count {
                number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let block = (number >> 33) % BLOCKS;
                let mut found = vec![0; BLOCK];
                file.read_exact_at(&mut found, block * BLOCK as u64)?;
                ensure!(found == content(block, false), "block {block}");
            }
            Ok(())
        };
        let threads: Vec<_> = (0..threads).map(|seed| scope.spawn(move || read(seed))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a reader panicked"))
    })
}

/// The name of the disk with this serial number.
pub fn disk_with(serial: &str) -> Result<String> {
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if attribute(&name, "serial").is_ok_and(|found| found == serial) {
            return Ok(name);
        }
    }
    anyhow::bail!("no disk has the serial number {serial}")
}

fn attribute(disk: &str, name: &str) -> Result<String> {
    let file = format!("/sys/block/{disk}/{name}");
    Ok(fs::read_to_string(&file)
        .with_context(|| file.clone())?
        .trim()
        .to_owned())
}
