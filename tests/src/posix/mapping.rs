//! A file that is mapped into memory, and the call that writes its pages back. Used by the behaviours and the
//! exerciser. Bytes are copied into and out of the mapping, never borrowed: other processes may change them
//! at any time.

#![allow(unsafe_code, reason = "mmap and sync_file_range have no safe form")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

/// What a mapping shows to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Writes reach the file.
    Shared,
    /// Writes stay in this process.
    Private,
}

/// Whether a mapping can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// PROT_READ.
    Read,
    /// PROT_READ and PROT_WRITE.
    Write,
}

/// A mapping of a file, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    address: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes of `file` from `offset`, which is a multiple of the page size.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(
        file: &File,
        offset: u64,
        length: usize,
        sharing: Sharing,
        access: Access,
    ) -> Result<Self, Errno> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        let flags = match sharing {
            Sharing::Shared => libc::MAP_SHARED,
            Sharing::Private => libc::MAP_PRIVATE,
        };
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the kernel chooses the address, so no other memory is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self {
            address: address.cast(),
            length,
        })
    }

    /// Copies bytes out of the mapping. SIGBUS kills the process if the file ends before them.
    ///
    /// # Panics
    /// If the range is outside of the mapping.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at + into.len() <= self.length, "outside of the mapping");
        // SAFETY: the range is inside of the mapping and `into` is not: nothing borrows a mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.address.add(at), into.as_mut_ptr(), into.len()) }
    }

    /// Copies bytes into the mapping. SIGBUS kills the process if the file ends before them.
    ///
    /// # Panics
    /// If the range is outside of the mapping.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "outside of the mapping");
        // SAFETY: the range is inside of the mapping and `bytes` is not: nothing borrows a mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.add(at), bytes.len()) }
    }

    /// msync(2) of the whole mapping with MS_SYNC.
    ///
    /// # Errors
    /// Those of msync(2).
    pub fn sync(&self) -> Result<(), Errno> {
        // SAFETY: the range is the mapping's.
        Errno::result(unsafe { libc::msync(self.address.cast(), self.length, libc::MS_SYNC) }).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's, and nothing refers to it any more.
        if unsafe { libc::munmap(self.address.cast(), self.length) } != 0 {
            eprintln!("munmap: {}", Errno::last());
        }
    }
}

/// sync_file_range(2) of a whole file, written and waited for.
///
/// # Errors
/// Those of sync_file_range(2).
pub fn sync_range(file: &File) -> Result<(), Errno> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: it accesses no memory of this process.
    Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) }).map(drop)
}
