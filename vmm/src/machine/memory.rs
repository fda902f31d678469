//! Allocates guest memory: private anonymous mappings that the host backs with pages when the guest touches
//! them. Called by the machine's steps; reads and writes none of it.

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::layout;
use crate::virtio::Memory;

/// Size and alignment of a huge page, in bytes: one EPT violation instead of 512.
const HUGE_PAGE: usize = 2 << 20;

/// Why guest memory could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// mmap(2) failed, for example for lack of address space.
    #[error("mapping {bytes} bytes of guest memory: {source}")]
    Map {
        /// Size of the range.
        bytes: u64,
        /// The cause.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The ranges overlap or exceed the address space.
    #[error("guest memory layout: {0}")]
    Layout(String),
}

/// Allocates `bytes` of guest memory at the addresses that [`layout::ram`] returns.
///
/// # Errors
/// [`Error::Map`] if mmap(2) fails.
pub fn allocate(bytes: u64) -> Result<Memory, Error> {
    let regions: Result<Vec<_>, Error> = layout::ram(bytes)
        .into_iter()
        .map(|(start, length)| region(start, length))
        .collect();
    Memory::from_regions(regions?).map_err(|error| Error::Layout(error.to_string()))
}

fn region(start: u64, bytes: u64) -> Result<GuestRegionMmap, Error> {
    let size = usize::try_from(bytes).map_err(|_| Error::Layout(format!("{bytes} bytes exceed usize")))?;
    let builder = MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let mapping = raw::map(builder, size).map_err(|source| Error::Map { bytes, source })?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| Error::Layout(format!("{bytes} bytes at {start:#x} exceed the address space")))
}

mod raw {
    //! mmap(2) with an alignment, which vm-memory does not offer.
    #![allow(unsafe_code, reason = "mmap")]

    use std::io;
    use std::ptr::null_mut;

    use vm_memory::MmapRegion;
    use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

    use super::HUGE_PAGE;

    /// Maps `size` bytes at a multiple of [`HUGE_PAGE`]. The guest-physical addresses are multiples, too, and
    /// KVM maps a huge page only if both are. Never unmapped: KVM and the devices use the memory until the
    /// process exits.
    pub(super) fn map(builder: MmapRegionBuilder, size: usize) -> Result<MmapRegion, MmapRegionError> {
        let reserved_size = size
            .checked_add(HUGE_PAGE)
            .ok_or(MmapRegionError::InvalidOffsetLength)?;
        // The rest of this reservation, before and after the aligned part, remains inaccessible as a guard.
        let reserved = mmap(null_mut(), reserved_size, libc::PROT_NONE, 0)?;
        let address = reserved.addr().next_multiple_of(HUGE_PAGE);
        let aligned = reserved.with_addr(address);
        let memory = mmap(aligned, size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED)?;
        // SAFETY: `memory` is a new mapping of `size` bytes; no other code has its address, and it is never
        // unmapped.
        unsafe { builder.with_raw_mmap_pointer(memory.cast()) }.build()
    }

    fn mmap(
        address: *mut libc::c_void,
        size: usize,
        protection: i32,
        extra_flags: i32,
    ) -> Result<*mut libc::c_void, MmapRegionError> {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE | extra_flags;
        // SAFETY: creates an anonymous mapping. With MAP_FIXED, [`map`] passes a range inside the reservation
        // that it has just made, so nothing else is replaced.
        let mapped = unsafe { libc::mmap(address, size, protection, flags, -1, 0) };
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
    fn memory_ends_after_its_last_byte() {
        let memory = allocate(16 << 20).unwrap();
        memory.write_obj(7u8, GuestAddress((16 << 20) - 1)).unwrap();
        assert!(memory.write_obj(7u8, GuestAddress(16 << 20)).is_err());
    }

    #[test]
    fn every_range_is_aligned_to_a_huge_page() {
        for bytes in [4096, 3 << 20, 5 << 30] {
            for region in allocate(bytes).unwrap().iter() {
                assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
            }
        }
    }

    #[test]
    fn memory_beyond_the_mmio_hole_continues_at_4_gib() {
        let memory = allocate(4 << 30).unwrap();
        assert!(!memory.address_in_range(GuestAddress(layout::MMIO)));
        memory.write_obj(7u8, GuestAddress(layout::RAM_ABOVE_4G)).unwrap();
    }
}
