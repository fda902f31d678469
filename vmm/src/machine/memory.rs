//! Guest memory: private anonymous mappings that the host backs page by page as the guest touches them. Called by
//! the machine's `memory` step; nothing is read or written here.

use std::num::NonZeroUsize;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::layout;
use crate::virtio::Memory;

/// A page, as the dirty bitmap counts.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// A huge page: one page fault of the guest instead of 512.
const HUGE_PAGE: usize = 2 << 20;

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
    let builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, PAGE))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let mapping = raw::map(builder, size).map_err(|source| Error::Map { bytes, source })?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| Error::Layout(format!("{bytes} bytes at {start:#x} exceed the address space")))
}

mod raw {
    //! Address space with an alignment, which vm-memory can't ask for.
    #![allow(unsafe_code, reason = "mmap")]

    use std::io;
    use std::ptr::null_mut;

    use vm_memory::MmapRegion;
    use vm_memory::bitmap::AtomicBitmap;
    use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

    use super::HUGE_PAGE;

    /// Maps `size` bytes at a multiple of [`HUGE_PAGE`], as guest-physical addresses are: only so can the host and
    /// KVM use huge pages. Never unmapped: KVM and the devices use it until the process ends.
    pub(super) fn map(
        builder: MmapRegionBuilder<AtomicBitmap>,
        size: usize,
    ) -> Result<MmapRegion<AtomicBitmap>, MmapRegionError> {
        let room = size
            .checked_add(HUGE_PAGE)
            .ok_or(MmapRegionError::InvalidOffsetLength)?;
        // What is left around the aligned part stays without access: a guard.
        let reserved = mmap(null_mut(), room, libc::PROT_NONE, 0)?;
        let address = reserved.addr().next_multiple_of(HUGE_PAGE);
        let aligned = reserved.with_addr(address);
        let memory = mmap(aligned, size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED)?;
        // SAFETY: `memory` is a mapping of `size` bytes that nobody else knows and nobody unmaps.
        unsafe { builder.with_raw_mmap_pointer(memory.cast()) }.build()
    }

    fn mmap(
        at: *mut libc::c_void,
        size: usize,
        protection: i32,
        fixed: i32,
    ) -> Result<*mut libc::c_void, MmapRegionError> {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE | fixed;
        // SAFETY: a new anonymous mapping; where its place is given it is inside one that the caller has just made
        // for this.
        let mapped = unsafe { libc::mmap(at, size, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(MmapRegionError::Mmap(io::Error::last_os_error()));
        }
        Ok(mapped)
    }
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
    fn is_aligned_so_that_huge_pages_fit() {
        for bytes in [4096, 3 << 20, 5 << 30] {
            for region in make(bytes).unwrap().iter() {
                assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
            }
        }
    }

    #[test]
    fn goes_on_above_4_gib() {
        let memory = make(4 << 30).unwrap();
        assert!(!memory.address_in_range(GuestAddress(layout::MMIO)));
        memory.write_obj(7u8, GuestAddress(layout::RAM_ABOVE_4G)).unwrap();
    }
}
