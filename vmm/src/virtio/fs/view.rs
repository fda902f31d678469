//! Guest memory as virtiofsd's library wants it: the same pages under another type of dirty bitmap. The library's
//! bitmap stays empty; [`View::mark`] notes in ours what it wrote.
#![allow(unsafe_code, reason = "the same mapping is looked at through two types")]

use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address as _, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap};

use crate::virtio::Memory;
use crate::virtio::worker::Chain;

/// Guest memory twice: the library's view, and ours, which owns the mapping.
pub struct View {
    library: GuestMemoryMmap<BitmapMmapRegion>,
    memory: Arc<Memory>,
}

impl View {
    /// A view of all of `memory`.
    pub fn of(memory: &Arc<Memory>) -> Result<Self, String> {
        let regions: Result<Vec<_>, String> = memory.iter().map(look_at).collect();
        let library = GuestMemoryMmap::from_regions(regions?).map_err(|error| error.to_string())?;
        Ok(Self {
            library,
            memory: Arc::clone(memory),
        })
    }

    /// For the library's readers and writers.
    pub fn library(&self) -> &GuestMemoryMmap<BitmapMmapRegion> {
        &self.library
    }

    /// Notes that the first `length` bytes of the writable part of `chain` were written.
    pub fn mark(&self, chain: Chain, length: u32) {
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

fn look_at<B: vm_memory::bitmap::Bitmap>(
    region: &GuestRegionMmap<B>,
) -> Result<GuestRegionMmap<BitmapMmapRegion>, String> {
    let builder = MmapRegionBuilder::new_with_bitmap(region.size(), BitmapMmapRegion::default())
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags());
    // SAFETY: the pointer is the start of a mapping of just this size, which `View::memory` keeps mapped for as long
    // as the view exists; a region made from a pointer does not unmap it.
    let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
    let mapping = builder.build().map_err(|error| error.to_string())?;
    GuestRegionMmap::new(mapping, region.start_addr()).ok_or_else(|| {
        format!(
            "the region at {:#x} exceeds the address space",
            region.start_addr().raw_value()
        )
    })
}
