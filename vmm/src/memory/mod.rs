//! Guest memory. The one place that decides at which addresses it is ([`ranges`]), what fills it
//! ([`Backing`]), and in which pages the host provides it ([`PagePolicy`]); [`mapping`] carries that out.
//! Called by the machine's steps; reads and writes none of it.

pub mod hotplug;
mod mapping;
pub mod page_range;
pub mod ranges;

pub use mapping::{HUGE_PAGE, provide_huge_page};

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _, MemoryRegionAddress,
    VolatileSlice,
};

use page_range::{MAX_EARLY_WRITES, PageRange};
use ranges::Ranges;

/// Guest memory. It has no dirty bitmap, because nothing reads one.
pub type Memory = GuestMemoryMmap;

/// Guest memory, which grows while the VM runs. Clones are the same memory.
#[derive(Clone)]
pub struct SharedMemory(Arc<Mutex<Arc<Memory>>>);

impl SharedMemory {
    /// Guest memory that has not grown.
    #[must_use]
    pub fn new(memory: Arc<Memory>) -> Self {
        Self(Arc::new(Mutex::new(memory)))
    }

    /// All of it.
    #[must_use]
    pub fn get(&self) -> Arc<Memory> {
        Arc::clone(&self.lock())
    }

    /// Replaces it by `memory`, which contains it.
    pub fn set(&self, memory: Arc<Memory>) {
        *self.lock() = memory;
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the bytes of guest memory are before the first write. Either way the memory belongs to this VM: no
/// write reaches a file or another process.
#[derive(Debug)]
pub enum Backing {
    /// Zeros.
    Anonymous,
    /// The bytes of a file, copied page by page when the guest writes them (MAP_PRIVATE), and zeros where the file
    /// has holes. The file must not change while the VM exists: an access to a page that was truncated is a
    /// SIGBUS.
    ///
    /// The holes are anonymous memory: an access to a hole that is mapped from a tmpfs makes the file larger.
    File {
        /// The file, open for reading.
        file: File,
        /// Position of the first range's first byte, a multiple of 4096. The second range follows without a
        /// gap.
        offset: u64,
        /// The pages that are mapped from the file, counted from `offset`, in ascending order.
        data: Vec<PageRange>,
    },
}

/// How the host backs a range with pages. No policy includes guest memory in a core dump (MADV_DONTDUMP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PagePolicy {
    /// MADV_HUGEPAGE: asks for pages of 2 MiB, so that the guest's first access to 2 MiB is one EPT violation
    /// instead of 512. Granted unless the host sets transparent huge pages to "never".
    huge_pages: bool,
}

impl PagePolicy {
    fn of(backing: &Backing) -> Self {
        match backing {
            Backing::Anonymous => Self { huge_pages: true },
            // The kernel copies a file's pages one by one, and a template is there to share most of them.
            Backing::File { .. } => Self { huge_pages: false },
        }
    }
}

/// Why guest memory could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// mmap(2) failed, for example for lack of address space.
    #[error("mapping {bytes} bytes of guest memory: {source}")]
    Map {
        /// Size of the range.
        bytes: u64,
        /// The cause.
        source: io::Error,
    },
    /// madvise(2) failed.
    #[error("madvise of guest memory with {advice}: {source}")]
    Advise {
        /// The advice, such as "MADV_DONTDUMP".
        advice: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The file of [`Backing::File`] can't be read.
    #[error("the file of guest memory: {0}")]
    File(io::Error),
    /// The file of [`Backing::File`] ends before guest memory does.
    #[error("the file of guest memory has {bytes} bytes, but {needed} are needed")]
    ShortFile {
        /// The file's size.
        bytes: u64,
        /// The offset and the size of all ranges.
        needed: u64,
    },
    /// The ranges overlap or exceed the address space.
    #[error("guest memory layout: {0}")]
    Layout(String),
}

/// Allocates `bytes` of zeroed guest memory at the addresses that [`Ranges::of`] returns. The host provides a
/// page when it is first touched.
///
/// # Errors
/// [`Error`] if mmap(2) or madvise(2) fails.
pub fn allocate(bytes: u64) -> Result<Memory, Error> {
    map(&Ranges::of(bytes), &Backing::Anonymous)
}

/// Maps the boot RAM of `ranges` from `backing`. Nothing is mapped for memory that may be plugged in later.
/// The mappings exist until the process exits.
///
/// # Errors
/// [`Error`] if mmap(2) or madvise(2) fails, or if the backing file is too short.
pub fn map(ranges: &Ranges, backing: &Backing) -> Result<Memory, Error> {
    check_size(ranges, backing)?;
    let policy = PagePolicy::of(backing);
    let mut regions = Vec::with_capacity(ranges.boot.len());
    let mut position = 0_u64;
    for range in &ranges.boot {
        let region = mapping::map(range.bytes, backing, position)?;
        mapping::apply(policy, &region)?;
        position = position.saturating_add(range.bytes);
        regions.push(
            vm_memory::GuestRegionMmap::new(region, GuestAddress(range.start))
                .ok_or_else(|| Error::Layout(format!("{range:?} exceeds the address space")))?,
        );
    }
    Memory::from_regions(regions).map_err(|error| Error::Layout(error.to_string()))
}

/// Returns the pages that lie completely in the `bytes` bytes of guest memory from `address` on to the host.
/// They then read as [`Backing`] says, until they are written. Does nothing if a part of the range is not
/// guest memory.
///
/// # Errors
/// The error of madvise(2).
pub fn discard(memory: &Memory, address: GuestAddress, bytes: u64) -> io::Result<()> {
    let page = mapping::PAGE;
    let end = address.0.saturating_add(bytes) / page * page;
    let Some(start) = address.0.checked_next_multiple_of(page) else {
        return Ok(());
    };
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    match memory.get_slice(GuestAddress(start), length) {
        Ok(slice) if length > 0 => mapping::free(&slice),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Copies the pages of `ranges` of the file that `memory` was mapped from, which the guest is about to write:
/// each would cost the guest two or three page faults. One that can't be copied is left to the guest, as all
/// are before Linux 5.14.
pub fn copy_ahead(memory: &Memory, ranges: &[PageRange]) {
    let mut left = MAX_EARLY_WRITES;
    for range in ranges {
        let Some(less) = left.checked_sub(range.count) else {
            return;
        };
        left = less;
        let start = u64::from(range.first).saturating_mul(mapping::PAGE);
        let bytes = u64::from(range.count).saturating_mul(mapping::PAGE);
        if let Some(slice) = at_position(memory, start, bytes) {
            mapping::populate(&slice);
        }
    }
}

/// The `bytes` bytes at `position` of a file that all regions are mapped from one after the other. None if they
/// are not in one region.
fn at_position(memory: &Memory, position: u64, bytes: u64) -> Option<VolatileSlice<'_>> {
    let mut offset = position;
    for region in memory.iter() {
        if offset < region.len() {
            let length = usize::try_from(bytes).ok()?;
            return region.get_slice(MemoryRegionAddress(offset), length).ok();
        }
        offset = offset.checked_sub(region.len())?;
    }
    None
}

/// A file that is shorter than its mapping would be a SIGBUS at some later access.
fn check_size(ranges: &Ranges, backing: &Backing) -> Result<(), Error> {
    let Backing::File { file, offset, .. } = backing else {
        return Ok(());
    };
    let bytes = file.metadata().map_err(Error::File)?.len();
    let needed = offset.saturating_add(ranges.boot_bytes());
    if bytes < needed {
        return Err(Error::ShortFile { bytes, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
