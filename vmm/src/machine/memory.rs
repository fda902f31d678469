//! Guest memory: private anonymous mappings that the host backs page by page as the guest touches them. Called by
//! the machine's `memory` step; nothing is read or written here.

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::layout;
use crate::virtio::Memory;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has not that much address space.
    #[error("mapping {bytes} bytes of guest memory: {source}")]
    Map {
        /// How much.
        bytes: u64,
        /// Why.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The parts of memory don't fit together.
    #[error("guest memory layout: {0}")]
    Layout(String),
}

/// Makes guest memory of `bytes`.
///
/// # Errors
/// [`Error`] where the mapping fails.
pub fn make(bytes: u64) -> Result<Memory, Error> {
    let regions: Result<Vec<_>, Error> = layout::ram(bytes)
        .into_iter()
        .map(|(start, length)| region(start, length))
        .collect();
    Memory::from_regions(regions?).map_err(|error| Error::Layout(error.to_string()))
}

fn region(start: u64, bytes: u64) -> Result<GuestRegionMmap<AtomicBitmap>, Error> {
    let size = usize::try_from(bytes).map_err(|_| Error::Layout(format!("{bytes} bytes in one part")))?;
    let mapping = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, vm_memory_page()))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(|source| Error::Map { bytes, source })?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| Error::Layout(format!("{bytes} bytes at {start:#x} exceed the address space")))
}

fn vm_memory_page() -> std::num::NonZeroUsize {
    std::num::NonZeroUsize::new(4096).unwrap_or(std::num::NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes as _, GuestMemory as _};

    #[test]
    fn is_there_up_to_its_last_byte_and_not_beyond() {
        let memory = make(16 << 20).unwrap();
        memory.write_obj(7u8, GuestAddress((16 << 20) - 1)).unwrap();
        assert!(memory.write_obj(7u8, GuestAddress(16 << 20)).is_err());
    }

    #[test]
    fn goes_on_above_4_gib() {
        let memory = make(4 << 30).unwrap();
        assert!(!memory.address_in_range(GuestAddress(layout::MMIO)));
        memory.write_obj(7u8, GuestAddress(layout::RAM_ABOVE_4G)).unwrap();
    }
}
