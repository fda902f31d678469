//! Which file a file is, by its content: [`FileId`]. A snapshot has the ids of the kernel, the initramfs and
//! its own memory file. Called before the jail is closed, and after guest memory was written. Holes are not
//! read.
//!
//! Reading all of guest memory at each restore would cost more than the rest of it. So a file that has not
//! changed since its id was made is not read again: it has the same inode, size and change time, which the
//! kernel sets at each write, and which no program can set back. Any other file is read.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The unit in which zeros are found, in bytes: a page of guest memory.
pub const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// The content of a file, and the file that had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// The size in bytes.
    pub bytes: u64,
    /// The sum of the content, by [`ContentSum`].
    pub sum: u64,
    stamp: Stamp,
}

/// What changes with each write to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, u64),
}

/// Two files have different contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// In their sizes.
    #[error("{found} bytes instead of {expected}")]
    Size {
        /// Of the file.
        found: u64,
        /// Of the id.
        expected: u64,
    },
    /// In their bytes.
    #[error("the content differs")]
    Content,
}

impl FileId {
    /// Reads all of `file`.
    ///
    /// # Errors
    /// The error of fstat(2), lseek(2) or pread(2).
    pub fn of(file: &File) -> io::Result<Self> {
        // A file that is changed while it is read must not have the stamp of its new content.
        let (bytes, stamp) = stamp(file)?;
        let sum = sum(file, bytes)?;
        Ok(Self { bytes, sum, stamp })
    }

    /// The id of `file`, whose content has the sum `sum`.
    ///
    /// # Errors
    /// The error of fstat(2).
    pub fn of_written(file: &File, sum: u64) -> io::Result<Self> {
        let (bytes, stamp) = stamp(file)?;
        Ok(Self { bytes, sum, stamp })
    }

    /// Whether `file` has this content. Reads it if it is another file or was changed.
    ///
    /// # Errors
    /// As [`FileId::of`].
    pub fn compare(&self, file: &File) -> io::Result<Result<(), Difference>> {
        let (found, stamp) = stamp(file)?;
        let expected = self.bytes;
        if found != expected {
            return Ok(Err(Difference::Size { found, expected }));
        }
        if stamp == self.stamp || sum(file, found)? == self.sum {
            return Ok(Ok(()));
        }
        Ok(Err(Difference::Content))
    }
}

/// The size and the stamp of `file`.
fn stamp(file: &File) -> io::Result<(u64, Stamp)> {
    let stat = fstat(file)?;
    let stamp = Stamp {
        device: stat.st_dev,
        inode: stat.st_ino,
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    };
    Ok((u64::try_from(stat.st_size).unwrap_or_default(), stamp))
}

/// A 64-bit sum of blocks and their positions. Blocks of zeros do not change it, so that a file has the same
/// sum whether it has holes or not. It finds accidents: whoever can write a snapshot can make another one
/// anyway.
#[derive(Debug, Default)]
pub struct ContentSum(DefaultHasher);

impl ContentSum {
    /// Adds `block`, which begins at `position` of the file. Does nothing if it is zeros. Blocks must be
    /// added in ascending order.
    pub fn add(&mut self, position: u64, block: &[u8]) {
        if !is_zero(block) {
            self.0.write_u64(position);
            self.0.write(block);
        }
    }

    /// The sum of all blocks.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// Whether `block` has no other bytes than zeros.
#[must_use]
pub fn is_zero(block: &[u8]) -> bool {
    // One memcmp(3) per block.
    block
        .chunks(BLOCK)
        .all(|part| Some(part) == ZEROS.get(..part.len()))
}

/// The sum of the first `bytes` of `file`.
fn sum(file: &File, bytes: u64) -> io::Result<u64> {
    let mut sum = ContentSum::default();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while let Some((start, end)) = next_data(file, position)? {
        // A hole may begin within a block.
        let unit = BLOCK as u64;
        position = (start / unit).saturating_mul(unit);
        let end = end.next_multiple_of(unit).min(bytes);
        while position < end {
            let length = usize::try_from(end.saturating_sub(position)).unwrap_or(CHUNK);
            let part = buffer.get_mut(..length.min(CHUNK)).unwrap_or_default();
            file.read_exact_at(part, position)?;
            for block in part.chunks(BLOCK) {
                sum.add(position, block);
                position = position.saturating_add(block.len() as u64);
            }
        }
        if position >= bytes {
            break;
        }
    }
    Ok(sum.finish())
}

/// The first range of `file` from `position` on that is not a hole; None if there is none.
pub(super) fn next_data(file: &File, position: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn holes_and_zeros_are_the_same() {
        let content = [vec![1; BLOCK], vec![0; 8 * BLOCK], vec![2; BLOCK + 7]].concat();
        let written = file(&content);
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(content.len() as u64).unwrap();
        sparse.write_all_at(&[1; BLOCK], 0).unwrap();
        sparse.write_all_at(&[2; BLOCK + 7], 9 * BLOCK as u64).unwrap();
        let (one, other) = (FileId::of(&written).unwrap(), FileId::of(&sparse).unwrap());
        assert_eq!((one.bytes, one.sum), (other.bytes, other.sum));
        assert_eq!(one.compare(&sparse).unwrap(), Ok(()));
    }

    #[test]
    fn every_change_is_found() {
        let content: Vec<u8> = (0_u8..251).cycle().take(3 * BLOCK + 5).collect();
        // Stays open: its inode must not be that of another file.
        let original = file(&content);
        let id = FileId::of(&original).unwrap();
        for bit in [0, 7, 8 * BLOCK - 1, 8 * BLOCK, 8 * content.len() - 1] {
            let mut changed = content.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                id.compare(&file(&changed)).unwrap(),
                Err(Difference::Content),
                "{bit}"
            );
        }
        let mut swapped = content.clone();
        swapped.rotate_left(BLOCK);
        assert_eq!(id.compare(&file(&swapped)).unwrap(), Err(Difference::Content));
        let (found, expected) = (3 * BLOCK as u64, content.len() as u64);
        assert_eq!(
            id.compare(&file(&content[..3 * BLOCK])).unwrap(),
            Err(Difference::Size { found, expected })
        );
    }

    #[test]
    fn a_file_that_was_changed_in_place_is_read_again() {
        let changed = file(&[1; BLOCK]);
        let id = FileId::of(&changed).unwrap();
        assert_eq!(id.compare(&changed).unwrap(), Ok(()));
        // The change time has the resolution of the kernel's tick.
        let before = fstat(&changed).unwrap();
        while fstat(&changed).unwrap().st_ctime_nsec == before.st_ctime_nsec {
            changed.write_all_at(&[2], 0).unwrap();
        }
        assert_eq!(id.compare(&changed).unwrap(), Err(Difference::Content));
        changed.write_all_at(&[1], 0).unwrap();
        assert_eq!(id.compare(&changed).unwrap(), Ok(()));
    }
}
