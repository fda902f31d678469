//! mmap(2) and madvise(2) for guest memory: an alignment, which vm-memory does not offer, and a page policy.
//! Called by [`super::map`], and for the file that guest memory is saved to.
#![allow(unsafe_code, reason = "mmap and madvise")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{MmapRegion, VolatileSlice};

use super::page_range::PageRange;
use super::{Backing, Error, PagePolicy};

/// Size and alignment of a page, in bytes.
pub const PAGE: u64 = 4096;
/// Size and alignment of a huge page, in bytes.
pub const HUGE_PAGE: usize = 2 << 20;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// The host promises no memory for a mapping: a guest that touches all of it may be OOM-killed.
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_NORESERVE;

/// Where the bytes of a mapping come from: flags, descriptor and offset of mmap(2).
#[derive(Clone, Copy)]
struct Source {
    flags: i32,
    fd: i32,
    offset: i64,
}

const ZEROS: Source = Source {
    flags: PRIVATE | libc::MAP_ANONYMOUS,
    fd: -1,
    offset: 0,
};

/// Maps `bytes` of `backing`, from `position` bytes after its start, at a multiple of [`HUGE_PAGE`]. The
/// guest-physical addresses are multiples, too, and KVM maps a huge page only if both are. Never unmapped:
/// KVM and the devices use the memory until the process exits.
pub fn map(bytes: u64, backing: &Backing, position: u64) -> Result<MmapRegion, Error> {
    let failed = |source| Error::Map { bytes, source };
    let too_large = || failed(io::Error::from_raw_os_error(libc::EOVERFLOW));
    let size = usize::try_from(bytes).map_err(|_| too_large())?;
    let memory = map_aligned(size, ZEROS, READ_WRITE).map_err(failed)?;
    if let Backing::File { file, offset, data } = backing {
        for range in data {
            let Some(part) = Part::of(*range, position, bytes) else {
                continue;
            };
            let offset = offset.checked_add(part.in_file).ok_or_else(too_large)?;
            let source = Source {
                flags: PRIVATE | libc::MAP_FIXED,
                fd: file.as_raw_fd(),
                offset: i64::try_from(offset).map_err(|_| too_large())?,
            };
            let address = memory.wrapping_byte_add(part.in_mapping);
            mmap(address, part.size, READ_WRITE, source).map_err(failed)?;
        }
    }
    region(memory, size, ZEROS.flags)
}

/// The part of a range of a file's pages that is in one mapping.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    in_file: u64,
    in_mapping: usize,
    size: usize,
}

impl Part {
    /// That of `pages` in a mapping of `bytes` at `position` of the file; None if there is none.
    fn of(pages: PageRange, position: u64, bytes: u64) -> Option<Self> {
        let in_bytes = |page: u32| u64::from(page).saturating_mul(PAGE);
        let start = in_bytes(pages.first).max(position);
        let end = in_bytes(pages.end()).min(position.saturating_add(bytes));
        let size = end.checked_sub(start).filter(|size| *size > 0)?;
        Some(Self {
            in_file: start,
            in_mapping: usize::try_from(start.saturating_sub(position)).ok()?,
            size: usize::try_from(size).ok()?,
        })
    }
}

/// Gives the hole of [`HUGE_PAGE`] bytes at `position` of `file`, a multiple of that, a huge page if the file system has
/// some: a tmpfs that is mounted with `huge=advise` (Documentation/admin-guide/mm/transhuge.rst).
///
/// # Errors
/// The error of mmap(2) or munmap(2).
pub fn provide_huge_page(file: &File, position: u64) -> io::Result<()> {
    let source = Source {
        flags: libc::MAP_SHARED,
        fd: file.as_raw_fd(),
        offset: i64::try_from(position).map_err(io::Error::other)?,
    };
    let mapped = map_aligned(HUGE_PAGE, source, READ_WRITE)?;
    // Fail without transparent huge pages, before Linux 5.14, or on a full disk: whoever writes the file finds that.
    let _ = advise(mapped, HUGE_PAGE, libc::MADV_HUGEPAGE);
    let _ = advise(mapped, HUGE_PAGE, libc::MADV_POPULATE_WRITE);
    // SAFETY: the range is the mapping that was made above, to which nothing refers.
    match unsafe { libc::munmap(mapped, HUGE_PAGE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reserves `bytes` of addresses for anonymous memory at a multiple of [`HUGE_PAGE`], with `policy`. They are
/// not accessible and cost nothing until [`provide`]. Never unmapped.
pub fn reserve(bytes: u64, policy: PagePolicy) -> Result<*mut libc::c_void, Error> {
    let failed = |source| Error::Map { bytes, source };
    let size = usize::try_from(bytes).map_err(|_| failed(io::Error::from_raw_os_error(libc::EOVERFLOW)))?;
    let reserved = map_aligned(size, ZEROS, libc::PROT_NONE).map_err(failed)?;
    apply_to(policy, reserved, size)?;
    Ok(reserved)
}

/// Makes the first `bytes` of `reserved` accessible, which is at least as long, and returns them. May be
/// called again with more bytes; the content stays.
pub fn provide(reserved: *mut libc::c_void, bytes: u64) -> Result<MmapRegion, Error> {
    let failed = |source| Error::Map { bytes, source };
    let size = usize::try_from(bytes).map_err(|_| failed(io::Error::from_raw_os_error(libc::EOVERFLOW)))?;
    // SAFETY: the range is the start of a mapping that [`reserve`] has made for this. Nothing loses access.
    let result = unsafe { libc::mprotect(reserved, size, READ_WRITE) };
    if result != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    region(reserved, size, ZEROS.flags)
}

/// The `size` bytes of a mapping at `memory` as a region.
fn region(memory: *mut libc::c_void, size: usize, flags: i32) -> Result<MmapRegion, Error> {
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(READ_WRITE)
        .with_mmap_flags(flags);
    // SAFETY: `memory` is a mapping of at least `size` bytes. It is never unmapped, and used as guest memory
    // alone: only by vm-memory's volatile accesses, and by KVM.
    let builder = unsafe { builder.with_raw_mmap_pointer(memory.cast()) };
    builder
        .build()
        .map_err(|error| Error::Layout(format!("{size} bytes: {error}")))
}

fn map_aligned(size: usize, source: Source, protection: i32) -> io::Result<*mut libc::c_void> {
    let reserved_size = size
        .checked_add(HUGE_PAGE)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // The rest of this reservation, before and after the aligned part, remains inaccessible as a guard.
    let reserved = mmap(null_mut(), reserved_size, libc::PROT_NONE, ZEROS)?;
    let aligned = reserved.with_addr(reserved.addr().next_multiple_of(HUGE_PAGE));
    let flags = source.flags | libc::MAP_FIXED;
    mmap(aligned, size, protection, Source { flags, ..source })
}

fn mmap(
    address: *mut libc::c_void,
    size: usize,
    protection: i32,
    source: Source,
) -> io::Result<*mut libc::c_void> {
    let Source { flags, fd, offset } = source;
    // SAFETY: creates a mapping. With MAP_FIXED, [`map_aligned`] and [`map`] pass a range inside the reservation
    // that they have just made, so nothing else is replaced.
    let mapped = unsafe { libc::mmap(address, size, protection, flags, fd, offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(mapped)
}

/// Applies `policy` to all pages of `region`.
pub fn apply(policy: PagePolicy, region: &MmapRegion) -> Result<(), Error> {
    apply_to(policy, region.as_ptr().cast(), region.size())
}

fn apply_to(policy: PagePolicy, start: *mut libc::c_void, size: usize) -> Result<(), Error> {
    let advise = |advice| advise(start, size, advice);
    advise(libc::MADV_DONTDUMP).map_err(|source| Error::Advise {
        advice: "MADV_DONTDUMP",
        source,
    })?;
    if !policy.huge_pages {
        return Ok(());
    }
    match advise(libc::MADV_HUGEPAGE) {
        // A kernel without transparent huge pages, of which `nacre doctor` warns.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        advised => advised.map_err(|source| Error::Advise {
            advice: "MADV_HUGEPAGE",
            source,
        }),
    }
}

fn advise(start: *mut libc::c_void, size: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the range lies in a mapping of this module; no advice that is passed changes a page's content.
    let result = unsafe { libc::madvise(start, size, advice) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Makes the pages of `slice` writable, and copies those that are a file's, as far as the host can
/// (MADV_POPULATE_WRITE). `slice` must begin at a multiple of 4096.
pub fn populate(slice: &VolatileSlice<'_>) {
    let start = slice.ptr_guard_mut();
    // Fails before Linux 5.14, or without memory: the guest's own access finds that.
    let _ = advise(start.as_ptr().cast(), slice.len(), libc::MADV_POPULATE_WRITE);
}

/// Frees the pages of `slice`, which must begin and end at a multiple of 4096 (MADV_DONTNEED).
pub fn free(slice: &VolatileSlice<'_>) -> io::Result<()> {
    let start = slice.ptr_guard_mut();
    // SAFETY: the range lies in a mapping of guest memory, which exists until the process exits. No Rust
    // reference points into guest memory, so none sees its bytes change.
    let result = unsafe { libc::madvise(start.as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
