//! The host's file behind a disk: a regular file or a block device. Checked once, before the jail is closed.
//! Never reads or writes it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fstat, ioctl_blkpbszget, ioctl_blksszget, seek};

use super::request::SECTOR;

/// The block size that a regular file is best written in: that of pages and of most file systems.
const FILE_BLOCK: u32 = 4096;

/// Why a file can't be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call failed.
    #[error("{operation}: {source}")]
    Io {
        /// Its purpose.
        operation: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// It is something else.
    #[error("expected a regular file or a block device, got a {0:?}")]
    Kind(FileType),
    /// It is not open for reading, or not for writing and the disk is to be written.
    #[error("the file is not open for {0}")]
    Access(&'static str),
    /// It is smaller than a sector.
    #[error("expected at least {SECTOR} bytes, got {0}")]
    Size(u64),
}

/// An open file that can be a disk.
#[derive(Debug)]
pub struct Disk {
    fd: OwnedFd,
    /// The size in sectors of 512 bytes.
    pub sectors: u64,
    /// The smallest unit that the disk can write, in bytes: a power of two from 512.
    pub logical_block: u32,
    /// The unit that the disk writes best, in bytes: a power of two from `logical_block`.
    pub physical_block: u32,
    /// Whether the guest can't write it.
    pub is_read_only: bool,
}

impl Disk {
    /// Checks `fd`: its kind, how it is open, and its size, of which an incomplete sector at the end is ignored.
    ///
    /// # Errors
    /// [`DiskError`] if it can't be a disk.
    pub fn new(fd: OwnedFd, is_read_only: bool) -> Result<Self, DiskError> {
        let at = |operation| {
            move |source: rustix::io::Errno| DiskError::Io {
                operation,
                source: source.into(),
            }
        };
        let kind = FileType::from_raw_mode(fstat(&fd).map_err(at("stat the disk's file"))?.st_mode);
        let flags = fcntl_getfl(&fd).map_err(at("read the flags of the disk's file"))?;
        match flags & OFlags::RWMODE {
            OFlags::RDWR => {}
            OFlags::RDONLY if is_read_only => {}
            OFlags::RDONLY => return Err(DiskError::Access("writing")),
            _ => return Err(DiskError::Access("reading")),
        }
        let (logical_block, physical_block) = if kind == FileType::RegularFile {
            (SECTOR.try_into().unwrap_or(FILE_BLOCK), FILE_BLOCK)
        } else if kind == FileType::BlockDevice {
            let logical = ioctl_blksszget(&fd).map_err(at("read the block size"))?;
            (
                logical,
                ioctl_blkpbszget(&fd).map_err(at("read the physical block size"))?,
            )
        } else {
            return Err(DiskError::Kind(kind));
        };
        let bytes = seek(&fd, SeekFrom::End(0)).map_err(at("find the size of the disk's file"))?;
        let sectors = bytes.checked_div(SECTOR).unwrap_or_default();
        if sectors == 0 {
            return Err(DiskError::Size(bytes));
        }
        Ok(Self {
            fd,
            sectors,
            logical_block,
            physical_block: physical_block.max(logical_block),
            is_read_only,
        })
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
