//! How many bytes a file system has by its superblock. A disk that is shorter is an image that was cut, which the
//! kernel does not notice for each type: an erofs image would fail when its end is read. Called by `file_systems`
//! before a disk is mounted; never allocates, since it runs in a forked child.

use std::ffi::CStr;
use std::io;

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, pread};

/// Bytes from the start of a disk that contain the superblock of each known type.
const LENGTH: usize = 2048;
/// Where the superblock begins, for both types.
const START: usize = 1024;

/// Checks that `node` has a file system of type `kind` with no more bytes than the disk.
///
/// # Errors
/// EUCLEAN if it has none of this type, EFBIG if the disk is too short for it, and those of reading.
pub fn check(node: &CStr, kind: &str) -> io::Result<()> {
    let disk = open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut start = [0; LENGTH];
    let mut filled = 0;
    while let Some(rest) = start.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match pread(&disk, rest, filled as u64)? {
            0 => break,
            read => filled = filled.saturating_add(read),
        }
    }
    let size = size(kind, &start).ok_or(Errno::UCLEAN)?;
    if size > seek(&disk, SeekFrom::End(0))? {
        return Err(Errno::FBIG.into());
    }
    Ok(())
}

/// The size that the superblock of a file system of type `kind` has, bytes; None if there is no such superblock.
fn size(kind: &str, start: &[u8; LENGTH]) -> Option<u64> {
    let (blocks, shift) = match kind {
        "ext4" => ext4(start)?,
        "erofs" => erofs(start)?,
        _ => return None,
    };
    // Both types have blocks of at most 64 KiB.
    let block = 1_u64.checked_shl(shift).filter(|block| *block <= 64 << 10)?;
    blocks.checked_mul(block)
}

/// The number of blocks, and the binary logarithm of their bytes (`struct ext4_super_block`).
fn ext4(start: &[u8; LENGTH]) -> Option<(u64, u32)> {
    const MAGIC: u16 = 0xEF53;
    const INCOMPAT_64BIT: u32 = 0x80;
    if u16::from_le_bytes(field(start, 56)?) != MAGIC {
        return None;
    }
    let number = |offset| Some(u32::from_le_bytes(field(start, offset)?));
    let has_high_half = number(96)? & INCOMPAT_64BIT != 0;
    let high = if has_high_half { number(336)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(number(4)?);
    Some((blocks, number(24)?.checked_add(10)?))
}

/// The same of `struct erofs_super_block`.
fn erofs(start: &[u8; LENGTH]) -> Option<(u64, u32)> {
    const MAGIC: u32 = 0xE0F5_E1E2;
    if u32::from_le_bytes(field(start, 0)?) != MAGIC {
        return None;
    }
    let [shift] = field(start, 12)?;
    Some((u32::from_le_bytes(field(start, 36)?).into(), shift.into()))
}

/// `N` bytes at `offset` of the superblock.
fn field<const N: usize>(start: &[u8; LENGTH], offset: usize) -> Option<[u8; N]> {
    start.get(START.checked_add(offset)?..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn with(fields: &[(usize, &[u8])]) -> [u8; LENGTH] {
        let mut start = [0; LENGTH];
        for (offset, bytes) in fields {
            start[START + offset..START + offset + bytes.len()].copy_from_slice(bytes);
        }
        start
    }

    const EXT4: (usize, &[u8]) = (56, &[0x53, 0xEF]);
    const EROFS: (usize, &[u8]) = (0, &[0xE2, 0xE1, 0xF5, 0xE0]);

    #[test]
    fn the_size_is_that_of_the_superblock() {
        let ext4 = with(&[EXT4, (4, &[0, 16, 0, 0]), (24, &[2])]);
        assert_eq!(size("ext4", &ext4), Some(4096 * 4096));
        // The upper half of the number of blocks counts only with the feature 64bit.
        let large = with(&[EXT4, (4, &[0, 16, 0, 0]), (24, &[2]), (336, &[1])]);
        assert_eq!(size("ext4", &large), Some(4096 * 4096));
        let large = with(&[EXT4, (4, &[0, 16, 0, 0]), (24, &[2]), (96, &[0x80]), (336, &[1])]);
        assert_eq!(size("ext4", &large), Some(4096 * (4096 + (1 << 32))));
        let erofs = with(&[EROFS, (12, &[12]), (36, &[3, 1])]);
        assert_eq!(size("erofs", &erofs), Some(259 * 4096));
    }

    #[test]
    fn what_is_no_superblock_of_the_type_has_no_size() {
        let ext4 = with(&[EXT4, (4, &[1])]);
        assert_eq!(size("erofs", &ext4), None);
        assert_eq!(size("xfs", &ext4), None);
        assert_eq!(size("ext4", &[0; LENGTH]), None);
        assert_eq!(size("ext4", &[255; LENGTH]), None);
        let shift = |shift: u8| with(&[EXT4, (4, &[1]), (24, &[shift])]);
        assert_eq!(size("ext4", &shift(6)), Some(64 << 10));
        assert_eq!(size("ext4", &shift(7)), None);
        let all_ones = with(&[EXT4, (24, &[255; 4])]);
        assert_eq!(size("ext4", &all_ones), None);
        let overflow = with(&[EXT4, (4, &[255; 4]), (24, &[6]), (96, &[0x80]), (336, &[255; 4])]);
        assert_eq!(size("ext4", &overflow), None);
    }

    #[test]
    fn a_disk_must_not_be_shorter_than_its_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let node = CString::new(path.as_os_str().as_bytes()).unwrap();
        let mut image = with(&[EROFS, (12, &[12]), (36, &[2])]).to_vec();
        image.resize(2 * 4096, 0);
        fs::write(&path, &image).unwrap();
        check(&node, "erofs").unwrap();
        let errno = |kind: &str| check(&node, kind).unwrap_err().raw_os_error();
        assert_eq!(errno("ext4"), Some(libc::EUCLEAN));
        fs::write(&path, &image[..2 * 4096 - 512]).unwrap();
        assert_eq!(errno("erofs"), Some(libc::EFBIG));
        fs::write(&path, &image[..512]).unwrap();
        assert_eq!(errno("erofs"), Some(libc::EUCLEAN));
    }
}
