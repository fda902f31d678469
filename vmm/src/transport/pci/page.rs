//! Pages of registers that the guest reads without a VM exit: memory of the VMM that KVM maps into the guest
//! read-only. A write by the guest still exits, and the VMM then stores what the registers read as from now
//! on. The PCI functions own the pages; the machine's steps map them into the guest.
//!
//! A page only mirrors registers: the VMM never reads one, so that it does not matter whether KVM can map it.

use std::sync::atomic::{Ordering, fence};

use vm_memory::mmap::MmapRegionError;
use vm_memory::{MmapRegion, VolatileMemory as _};

/// Size of a page, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Consecutive pages of registers.
#[derive(Clone, Copy)]
pub struct RegisterPages {
    /// Never unmapped: KVM reads it until the process exits.
    mapping: &'static MmapRegion,
    first: usize,
}

impl RegisterPages {
    /// Allocates `count` pages of zeros. The host backs a page with memory at the first write to it.
    ///
    /// # Errors
    /// The error of mmap(2).
    pub fn allocate(count: usize) -> Result<Self, MmapRegionError> {
        let mapping = MmapRegion::new(count.saturating_mul(PAGE_BYTES))?;
        Ok(Self {
            mapping: Box::leak(Box::new(mapping)),
            first: 0,
        })
    }

    /// These pages without the first `count`.
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        Self {
            first: self.first.saturating_add(count),
            ..self
        }
    }

    /// The address of the first page in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        (self.mapping.as_ptr() as u64).saturating_add(self.first.saturating_mul(PAGE_BYTES) as u64)
    }

    /// Stores `bytes` from `offset` of the first page on. Drops those beyond the last page. The guest sees
    /// them before what is stored next.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        let start = self.first.saturating_mul(PAGE_BYTES).saturating_add(offset);
        let length = bytes.len().min(self.mapping.size().saturating_sub(start));
        if let Ok(slice) = self.mapping.get_slice(start, length) {
            slice.copy_from(bytes);
            fence(Ordering::Release);
        }
    }

    /// Fills page `index` with `byte`.
    pub fn fill(&self, index: usize, byte: u8) {
        self.store(index.saturating_mul(PAGE_BYTES), &[byte; PAGE_BYTES]);
    }

    /// What the guest reads at `offset`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn load(&self, offset: usize, data: &mut [u8]) {
        let start = self.first * PAGE_BYTES + offset;
        self.mapping.get_slice(start, data.len()).unwrap().copy_to(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_beyond_the_last_page_are_dropped() {
        let pages = RegisterPages::allocate(2).unwrap();
        pages.skip(1).store(PAGE_BYTES - 2, &[1, 2, 3]);
        pages.skip(2).store(0, &[4]);
        pages.store(usize::MAX, &[5]);
        let mut data = [0; 4];
        pages.load(2 * PAGE_BYTES - 4, &mut data);
        assert_eq!(data, [0, 0, 1, 2]);
        assert_eq!(
            pages.skip(1).host_address() - pages.host_address(),
            PAGE_BYTES as u64
        );
    }
}
