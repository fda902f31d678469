//! Loads the guest's initramfs: reads its file directly into guest memory, at the end of RAM below the MMIO
//! hole. Called by the machine's steps; never looks into the archive.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};

use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryError};

use crate::layout;
use crate::memory::Memory;

/// Why an initramfs can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the file failed.
    #[error("reading the file: {0}")]
    Read(#[from] io::Error),
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It would overlap the kernel.
    #[error("{bytes} bytes do not fit in memory above the kernel, which ends at {kernel_end:#x}")]
    NoSpace {
        /// Size of the initramfs.
        bytes: u64,
        /// Physical address of the kernel's end.
        kernel_end: u64,
    },
}

/// Location of the initramfs in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Physical address, page-aligned.
    pub address: u64,
    /// Size of the initramfs.
    pub bytes: u64,
}

/// Loads `file`, whose size is `bytes`, to the end of low RAM, above `kernel_end`.
///
/// # Errors
/// [`Error`] if it can't be read or does not fit.
pub fn load(file: &File, bytes: u64, memory: &Memory, kernel_end: u64) -> Result<Location, Error> {
    if bytes == 0 {
        return Err(Error::Empty);
    }
    let ram_end = memory.last_addr().0.saturating_add(1).min(layout::MMIO);
    let no_space = || Error::NoSpace { bytes, kernel_end };
    let address = ram_end.checked_sub(bytes).ok_or_else(no_space)? & !0xfff;
    if address < kernel_end.max(layout::HIGH_RAM) {
        return Err(no_space());
    }
    let length = usize::try_from(bytes).map_err(|_| no_space())?;
    read_into_memory(file, 0, memory, (GuestAddress(address), length))?.ok_or_else(no_space)?;
    Ok(Location { address, bytes })
}

/// Reads from `offset` of `file` into the guest memory at `to`, an address and a length. Returns None if that
/// range is not guest memory.
pub(super) fn read_into_memory(
    mut file: &File,
    offset: u64,
    memory: &Memory,
    to: (GuestAddress, usize),
) -> io::Result<Option<()>> {
    file.seek(SeekFrom::Start(offset))?;
    match memory.read_exact_volatile_from(to.0, &mut file, to.1) {
        Ok(()) => Ok(Some(())),
        Err(GuestMemoryError::IOError(source)) => Err(source),
        Err(GuestMemoryError::PartialBuffer { .. }) if memory.check_range(to.0, to.1) => {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn is_loaded_page_aligned_at_the_end_of_memory() {
        let memory = crate::memory::allocate(8 << 20).unwrap();
        let location = load(&file(&[7; 5000]), 5000, &memory, 4 << 20).unwrap();
        assert_eq!(
            location,
            Location {
                address: (8 << 20) - 8192,
                bytes: 5000
            }
        );
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(location.address + 4999))
                .unwrap(),
            7
        );
    }

    #[test]
    fn is_refused_if_it_is_empty_or_overlaps_the_kernel() {
        let memory = crate::memory::allocate(8 << 20).unwrap();
        let image = file(&[7; 5000]);
        assert!(matches!(
            load(&image, 5000, &memory, (8 << 20) - 4096),
            Err(Error::NoSpace { .. })
        ));
        assert!(matches!(
            load(&image, u64::MAX, &memory, 0),
            Err(Error::NoSpace { .. })
        ));
        assert!(matches!(load(&image, 0, &memory, 0), Err(Error::Empty)));
    }

    #[test]
    fn a_file_shorter_than_expected_is_an_error() {
        let memory = crate::memory::allocate(8 << 20).unwrap();
        assert!(matches!(
            load(&file(&[7; 10]), 5000, &memory, 0),
            Err(Error::Read(_))
        ));
    }
}
