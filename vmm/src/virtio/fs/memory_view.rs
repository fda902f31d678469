//! Guest memory in the type that virtiofsd's library takes: the same mapping with another type of dirty
//! bitmap. The library's bitmap stays empty; [`MemoryView::mark_dirty`] records in ours what the library
//! wrote. Used by [`super::request`]; never maps or unmaps memory.
#![allow(unsafe_code, reason = "two types refer to the same mapping")]

use std::error::Error;
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address as _, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap};

use crate::virtio::Memory;
use crate::virtio::worker::Chain;

/// Guest memory in both types. Ours owns the mapping.
pub struct MemoryView {
    library: GuestMemoryMmap<BitmapMmapRegion>,
    memory: Arc<Memory>,
}

impl MemoryView {
    /// A view of all regions of `memory`.
    pub fn of(memory: &Arc<Memory>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let regions: Result<Vec<_>, _> = memory.iter().map(alias).collect();
        let library = GuestMemoryMmap::from_regions(regions?)?;
        Ok(Self {
            library,
            memory: Arc::clone(memory),
        })
    }

    /// Guest memory for the library's `Reader` and `Writer`.
    pub fn library(&self) -> &GuestMemoryMmap<BitmapMmapRegion> {
        &self.library
    }

    /// Marks the first `length` bytes of the device-writable part of `chain` as written.
    pub fn mark_dirty(&self, chain: Chain, length: u32) {
        let mut left = length;
        for descriptor in chain.writable() {
            let part = descriptor.len().min(left);
            left = left.saturating_sub(part);
            if let Ok(part) = usize::try_from(part)
                && let Ok(slice) = self.memory.get_slice(descriptor.addr(), part)
            {
                slice.bitmap().mark_dirty(0, part);
            }
            if left == 0 {
                break;
            }
        }
    }
}

/// The mapping of `region` under the library's type. Dropping it does not unmap anything.
fn alias<B: vm_memory::bitmap::Bitmap>(
    region: &GuestRegionMmap<B>,
) -> Result<GuestRegionMmap<BitmapMmapRegion>, Box<dyn Error + Send + Sync>> {
    let builder = MmapRegionBuilder::new_with_bitmap(region.size(), BitmapMmapRegion::default())
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags());
    // SAFETY: the pointer is the start of a mapping of exactly this size, which `MemoryView::memory` keeps
    // mapped as long as the view exists; a region that is built from a pointer does not unmap it.
    let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
    let start = region.start_addr();
    GuestRegionMmap::new(builder.build()?, start)
        .ok_or_else(|| format!("the region at {:#x} exceeds the address space", start.raw_value()).into())
}
