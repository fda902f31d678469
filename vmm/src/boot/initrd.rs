//! The guest's initramfs: read from its file straight into guest memory, at the end of RAM below the device hole.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};

use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryError};

use crate::machine::layout;
use crate::virtio::Memory;

/// Why an initramfs can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("can't be read: {0}")]
    Read(#[from] io::Error),
    /// An empty file boots nothing.
    #[error("the file is empty")]
    Empty,
    /// It would lie over the kernel.
    #[error("{bytes} bytes do not fit in memory beside the kernel, which ends at {kernel_end:#x}")]
    NoRoom {
        /// Its size.
        bytes: u64,
        /// Where the kernel ends.
        kernel_end: u64,
    },
}

/// Where the initramfs stands in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// First byte.
    pub address: u64,
    /// Size.
    pub bytes: u64,
}

/// Reads `file`, whose size is `bytes`, to the end of low RAM, above `kernel_end`.
///
/// # Errors
/// [`Error`] where it can't be read or does not fit.
pub fn load(file: &File, bytes: u64, memory: &Memory, kernel_end: u64) -> Result<Placed, Error> {
    if bytes == 0 {
        return Err(Error::Empty);
    }
    let ram_end = memory.last_addr().0.saturating_add(1).min(layout::MMIO);
    let no_room = || Error::NoRoom { bytes, kernel_end };
    let address = ram_end.checked_sub(bytes).ok_or_else(no_room)? & !0xfff;
    if address < kernel_end.max(layout::HIGH_RAM) {
        return Err(no_room());
    }
    let length = usize::try_from(bytes).map_err(|_| no_room())?;
    copy(file, 0, memory, (GuestAddress(address), length))?.ok_or_else(no_room)?;
    Ok(Placed { address, bytes })
}

/// Reads from `offset` of `file` into guest memory, `to` being address and length; None where that is no memory.
pub(super) fn copy(
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
    fn stands_page_aligned_at_the_end_of_memory() {
        let memory = crate::machine::memory::make(8 << 20).unwrap();
        let placed = load(&file(&[7; 5000]), 5000, &memory, 4 << 20).unwrap();
        assert_eq!(
            placed,
            Placed {
                address: (8 << 20) - 8192,
                bytes: 5000
            }
        );
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(placed.address + 4999))
                .unwrap(),
            7
        );
    }

    #[test]
    fn is_refused_where_it_would_lie_over_the_kernel_or_is_nothing() {
        let memory = crate::machine::memory::make(8 << 20).unwrap();
        let image = file(&[7; 5000]);
        assert!(matches!(
            load(&image, 5000, &memory, (8 << 20) - 4096),
            Err(Error::NoRoom { .. })
        ));
        assert!(matches!(
            load(&image, u64::MAX, &memory, 0),
            Err(Error::NoRoom { .. })
        ));
        assert!(matches!(load(&image, 0, &memory, 0), Err(Error::Empty)));
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let memory = crate::machine::memory::make(8 << 20).unwrap();
        assert!(matches!(
            load(&file(&[7; 10]), 5000, &memory, 0),
            Err(Error::Read(_))
        ));
    }
}
