//! Which parts of the file of guest memory are stored in huge pages: those that a guest reads but does not write, such
//! as the kernel's text. A restored guest touches them at one EPT violation per 2 MiB instead of one per 4 KiB. The
//! file must be on a tmpfs that is mounted with `huge=advise`, as the store of templates is; anywhere else its content
//! is the same, in small pages.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, fallocate};

use super::content::{BLOCK, FileId};
use crate::memory::page_range::PageRange;
use crate::memory::{HUGE_PAGE, provide_huge_page};

/// Pages of 4 KiB in a huge page.
const PAGES: u32 = 512;
/// Fewest pages of it that must have data: the others take memory that they did not before.
const FEWEST: u32 = PAGES / 4 * 3;

/// Stores parts of `file`, the guest memory with the id `id`, in huge pages: those that are nearly full, and of which a
/// guest that continues writes nothing (`early_writes`). The pages that the file has are `data`; all of a huge page are
/// among them afterwards. Returns the file's new id.
///
/// # Errors
/// The error of pread(2), fallocate(2), mmap(2), pwrite(2), fsync(2) or fstat(2).
pub fn store(
    file: &File,
    id: &FileId,
    early_writes: &[PageRange],
    data: &mut Vec<PageRange>,
) -> io::Result<FileId> {
    let mut content = vec![0; HUGE_PAGE];
    for block in candidates(id.bytes, data, early_writes) {
        let position = u64::from(block.first).saturating_mul(BLOCK as u64);
        file.read_exact_at(&mut content, position)?;
        // A small page stays small.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file.as_fd(), punch, position, HUGE_PAGE as u64)?;
        provide_huge_page(file, position)?;
        file.write_all_at(&content, position)?;
        cover(data, block);
    }
    file.sync_all()?;
    FileId::of_written(file, id.sum)
}

/// The pages of each huge page that is worth it, of a file of `bytes`.
fn candidates(bytes: u64, data: &[PageRange], early_writes: &[PageRange]) -> Vec<PageRange> {
    let whole = u32::try_from(bytes / HUGE_PAGE as u64).unwrap_or(u32::MAX);
    let blocks = (0..whole).map(|block| PageRange {
        first: block.saturating_mul(PAGES),
        count: PAGES,
    });
    blocks
        .filter(|block| pages_in(*block, data) >= FEWEST && pages_in(*block, early_writes) == 0)
        .collect()
}

/// How many pages of `ranges` are in `block`.
fn pages_in(block: PageRange, ranges: &[PageRange]) -> u32 {
    let common = ranges.iter().map(|range| {
        let end = range.end().min(block.end());
        end.saturating_sub(range.first.max(block.first))
    });
    common.sum()
}

/// Adds `block` to `data`, which is in ascending order and stays so. Ranges that it touches become one with it.
fn cover(data: &mut Vec<PageRange>, block: PageRange) {
    let from = data.partition_point(|range| range.end() < block.first);
    let to = data.partition_point(|range| range.first <= block.end());
    let touched = data.get(from..to).unwrap_or_default();
    let first = touched
        .first()
        .map_or(block.first, |range| range.first.min(block.first));
    let end = touched
        .last()
        .map_or(block.end(), |range| range.end().max(block.end()));
    let count = end.saturating_sub(first);
    data.splice(from..to, [PageRange { first, count }]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> PageRange {
        PageRange { first, count }
    }

    #[test]
    fn nearly_full_parts_that_nobody_writes_are_worth_it() {
        let bytes = 5 * HUGE_PAGE as u64 + 4096;
        let data = [
            range(0, 512),
            range(512, FEWEST),
            range(1024, FEWEST - 1),
            range(1540, 1400),
        ];
        let writes = [range(100, 3), range(2300, 1)];
        let worth_it = |data: &[_], writes: &[_]| -> Vec<u32> {
            let found = candidates(bytes, data, writes);
            found.iter().map(|block| block.first / PAGES).collect()
        };
        assert_eq!(worth_it(&data, &writes), [1, 3]);
        assert_eq!(worth_it(&data, &[]), [0, 1, 3, 4]);
        assert_eq!(worth_it(&[], &[]), [0; 0]);
    }

    #[test]
    fn data_covers_a_huge_page() {
        let covered = |data: &[PageRange], block| {
            let mut data = data.to_vec();
            cover(&mut data, block);
            data
        };
        let block = range(512, 512);
        assert_eq!(covered(&[], block), [block]);
        assert_eq!(covered(&[range(0, 100)], block), [range(0, 100), block]);
        assert_eq!(covered(&[range(2000, 1)], block), [block, range(2000, 1)]);
        assert_eq!(covered(&[range(0, 512)], block), [range(0, 1024)]);
        assert_eq!(covered(&[range(1024, 2)], block), [range(512, 514)]);
        let apart = [range(0, 9), range(500, 50), range(600, 500), range(3000, 1)];
        assert_eq!(
            covered(&apart, block),
            [range(0, 9), range(500, 600), range(3000, 1)]
        );
    }

    #[test]
    fn the_content_stays() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 3 * HUGE_PAGE as u64;
        file.set_len(bytes).unwrap();
        let pages: Vec<u8> = (1..=u8::MAX).cycle().take(FEWEST as usize).collect();
        let content: Vec<u8> = pages.iter().flat_map(|page| [*page; BLOCK]).collect();
        file.write_all_at(&content, HUGE_PAGE as u64).unwrap();
        let before = FileId::of(&file).unwrap();
        let mut data = vec![range(PAGES, FEWEST)];
        let id = store(&file, &before, &[], &mut data).unwrap();
        assert_eq!(data, [range(PAGES, PAGES)]);
        assert_eq!(FileId::of(&file).unwrap(), id);
        assert_eq!((id.bytes, id.sum), (before.bytes, before.sum));
        let mut after = vec![0; content.len()];
        file.read_exact_at(&mut after, HUGE_PAGE as u64).unwrap();
        assert!(after == content, "the content has changed");
    }
}
