//! Guest memory in the type that virtiofsd's library takes: the same mapping with a dirty bitmap that the
//! library could switch on, and never does. Used by [`super::request`]; never maps or unmaps memory.
#![allow(unsafe_code, reason = "two types refer to the same mapping")]

use std::error::Error;
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address as _, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap};

use crate::memory::Memory;

/// Guest memory in both types. Ours owns the mapping.
pub struct MemoryView {
    library: GuestMemoryMmap<BitmapMmapRegion>,
    _memory: Arc<Memory>,
}

impl MemoryView {
    /// A view of all regions of `memory`.
    pub fn of(memory: &Arc<Memory>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let regions: Result<Vec<_>, _> = memory.iter().map(alias).collect();
        let library = GuestMemoryMmap::from_regions(regions?)?;
        Ok(Self {
            library,
            _memory: Arc::clone(memory),
        })
    }

    /// Guest memory for the library's `Reader` and `Writer`.
    pub fn library(&self) -> &GuestMemoryMmap<BitmapMmapRegion> {
        &self.library
    }
}

/// The mapping of `region` under the library's type. Dropping it does not unmap anything.
fn alias(
    region: &GuestRegionMmap,
) -> Result<GuestRegionMmap<BitmapMmapRegion>, Box<dyn Error + Send + Sync>> {
    let builder = MmapRegionBuilder::new_with_bitmap(region.size(), BitmapMmapRegion::default())
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags());
    // SAFETY: the pointer is the start of a mapping of exactly this size, which `MemoryView::_memory` keeps
    // mapped as long as the view exists; a region that is built from a pointer does not unmap it.
    let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
    let start = region.start_addr();
    GuestRegionMmap::new(builder.build()?, start)
        .ok_or_else(|| format!("the region at {:#x} exceeds the address space", start.raw_value()).into())
}
