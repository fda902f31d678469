//! What the steps of [`super`] do in a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{Gid, Uid, fchown};

/// Directories of the tree of small files, and files in each.
const DIRECTORIES: u32 = 16;
const FILES_EACH: u32 = 16;
const SMALL: [u8; 1024] = [b'x'; 1024];

/// MiB of the large file, which is written and read in pieces of one.
pub const LARGE_MIB: u32 = 64;
const MIB: usize = 1 << 20;
/// Bytes of what is read and written at random, and synced.
const BLOCK: usize = 4096;
/// Random reads and writes of one thread.
pub const ALONE: u32 = 256;
/// Threads that read or write at once, and how many blocks each.
pub const DEPTH: u32 = 32;
/// See [`DEPTH`].
pub const EACH: u32 = 16;
/// Blocks that are appended to a log and synced one by one.
pub const SYNCED: u32 = 64;

fn directories(directory: &Path) -> impl Iterator<Item = PathBuf> {
    (0..DIRECTORIES).map(move |number| directory.join(format!("tree/directory-{number}")))
}

fn small_files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    directories(directory)
        .flat_map(|parent| (0..FILES_EACH).map(move |number| parent.join(format!("file-{number}"))))
}

pub fn untar(directory: &Path) -> Result<()> {
    fs::create_dir(directory.join("tree"))?;
    for parent in directories(directory) {
        fs::create_dir(parent)?;
    }
    for path in small_files(directory) {
        let options = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let mut file = options?;
        file.write_all(&SMALL)?;
        file.set_modified(SystemTime::UNIX_EPOCH)?;
        fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT))?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

pub fn stat(directory: &Path) -> Result<()> {
    for path in small_files(directory) {
        let length = fs::symlink_metadata(&path)?.len();
        ensure!(length == SMALL.len() as u64, "{}: {length} bytes", path.display());
    }
    Ok(())
}

pub fn find(directory: &Path) -> Result<()> {
    let found = count(&directory.join("tree"))?;
    let expected = DIRECTORIES + DIRECTORIES * FILES_EACH;
    ensure!(found == expected, "{found} names, expected {expected}");
    Ok(())
}

/// How many names are below `directory`.
fn count(directory: &Path) -> Result<u32> {
    let mut found = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        found += 1;
        if entry.file_type()?.is_dir() {
            found += count(&entry.path())?;
        }
    }
    Ok(found)
}

/// As `git status` does: looks at each file that it knows, and then for others.
pub fn status(directory: &Path) -> Result<()> {
    stat(directory)?;
    find(directory)
}

pub fn remove(directory: &Path) -> Result<()> {
    small_files(directory).try_for_each(fs::remove_file)?;
    directories(directory).try_for_each(fs::remove_dir)?;
    Ok(fs::remove_dir(directory.join("tree"))?)
}

fn large(directory: &Path) -> PathBuf {
    directory.join("large")
}

pub fn write(directory: &Path) -> Result<()> {
    let mut file = File::create(large(directory))?;
    let piece = vec![b'x'; MIB];
    for _ in 0..LARGE_MIB {
        file.write_all(&piece)?;
    }
    Ok(file.sync_all()?)
}

pub fn read(directory: &Path) -> Result<()> {
    let mut file = File::open(large(directory))?;
    let mut piece = vec![0; MIB];
    for _ in 0..LARGE_MIB {
        file.read_exact(&mut piece)?;
    }
    Ok(())
}

/// A block in memory as O_DIRECT needs it.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

pub fn random_read(directory: &Path) -> Result<()> {
    at_random(directory, 1, ALONE, read_block)
}

pub fn random_read_32(directory: &Path) -> Result<()> {
    at_random(directory, DEPTH, EACH, read_block)
}

pub fn random_write(directory: &Path) -> Result<()> {
    at_random(directory, 1, ALONE, write_block)
}

pub fn random_write_32(directory: &Path) -> Result<()> {
    at_random(directory, DEPTH, EACH, write_block)
}

fn read_block(file: &File, block: &mut Block, offset: u64) -> std::io::Result<()> {
    file.read_exact_at(&mut block.0, offset)
}

fn write_block(file: &File, block: &mut Block, offset: u64) -> std::io::Result<()> {
    file.write_all_at(&block.0, offset)
}

/// `threads` threads call `operation` for `each` random blocks of the large file, one after the other.
fn at_random(
    directory: &Path,
    threads: u32,
    each: u32,
    operation: fn(&File, &mut Block, u64) -> std::io::Result<()>,
) -> Result<()> {
    let flags = libc::O_DIRECT;
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(large(directory));
    let file = options.context("opening with O_DIRECT")?;
    let run = |seed: u32| -> std::io::Result<()> {
        let mut block = Block([b'y'; BLOCK]);
        let mut number = u64::from(seed);
        for _ in 0..each {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let index = (number >> 33) % (u64::from(LARGE_MIB) * (MIB / BLOCK) as u64);
            operation(&file, &mut block, index * BLOCK as u64)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|seed| scope.spawn(move || run(seed))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => bail!("a thread panicked"),
        })
    })
}

pub fn append_synced(directory: &Path) -> Result<()> {
    let mut file = File::create(directory.join("log"))?;
    for _ in 0..SYNCED {
        file.write_all(&[b'z'; BLOCK])?;
        file.sync_all()?;
    }
    Ok(())
}
