//! The file `memory` of a snapshot: all of guest RAM without a gap between its ranges, with holes for pages
//! of zeros. Written while the guest is paused; the restored VM maps it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;

use vm_memory::{Bytes as _, GuestMemory as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::content::{BLOCK, ContentSum, FileId, is_zero};
use crate::memory::Memory;
use crate::memory::page_range::{MAX_EARLY_WRITES, PageRange};

/// Bytes that are looked at and written at once.
const CHUNK: usize = 1 << 20;
/// Holes of fewer pages between data are not worth a mapping: 256 KiB.
const SMALL_HOLE: u32 = 64;
/// For [`append`]: only neighbours become one.
const NEIGHBOURS: u32 = 1;

/// Writes `memory` to the empty file `file`. Returns the id of that, and the pages that it has ([`MachineState::data`]).
///
/// [`MachineState::data`]: super::state::MachineState::data
///
/// # Errors
/// The error of ftruncate(2), pwrite(2), fsync(2) or fstat(2).
pub fn write(memory: &Memory, file: &File) -> io::Result<(FileId, Vec<PageRange>)> {
    let bytes = memory
        .iter()
        .fold(0_u64, |sum, region| sum.saturating_add(region.len()));
    file.set_len(bytes)?;
    let mut written = Written::default();
    for_each_part(memory, |position, part| {
        written.write(file, position, part)?;
        Ok(ControlFlow::Continue(()))
    })?;
    file.sync_all()?;
    let Written { sum, data } = written;
    Ok((FileId::of_written(file, sum.finish())?, data))
}

/// The pages of `memory` that were written since [`write()`] has written `file`, not more than [`MAX_EARLY_WRITES`]:
/// those that are `logged`, and those that differ. A log has pages that have their old content again, such as those of
/// locks, but not what devices have written. Pages of zeros that are not logged were given back to the host.
///
/// # Errors
/// The error of pread(2).
pub fn written(memory: &Memory, file: &File, logged: &BTreeSet<u32>) -> io::Result<Vec<PageRange>> {
    let (mut ranges, mut count, mut buffer) = (Vec::new(), 0_u32, vec![0; CHUNK]);
    for_each_part(memory, |position, now| {
        let before = buffer.get_mut(..now.len()).unwrap_or_default();
        file.read_exact_at(before, position)?;
        let pairs = now.chunks(BLOCK).zip(before.chunks(BLOCK));
        for (page, _) in (page_at(position)..)
            .zip(pairs)
            .filter(|(page, (now, before))| logged.contains(page) || (now != before && !is_zero(now)))
        {
            count = count.saturating_add(1);
            if count > MAX_EARLY_WRITES {
                return Ok(ControlFlow::Break(()));
            }
            append(
                &mut ranges,
                PageRange {
                    first: page,
                    count: 1,
                },
                NEIGHBOURS,
            );
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ranges)
}

/// Calls `visit` with each part of `memory`, of [`CHUNK`] bytes at most, and its position in the file, until it
/// breaks or fails.
fn for_each_part(
    memory: &Memory,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let (mut buffer, mut position) = (vec![0; CHUNK], 0_u64);
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let length = usize::try_from(region.len().saturating_sub(offset)).unwrap_or(CHUNK);
            let part = buffer.get_mut(..length.min(CHUNK)).unwrap_or_default();
            region
                .read_slice(part, MemoryRegionAddress(offset))
                .map_err(io::Error::other)?;
            if visit(position, part)?.is_break() {
                return Ok(());
            }
            offset = offset.saturating_add(part.len() as u64);
            position = position.saturating_add(part.len() as u64);
        }
    }
    Ok(())
}

/// The number of the page at `position` of the file.
fn page_at(position: u64) -> u32 {
    u32::try_from(position / BLOCK as u64).unwrap_or(u32::MAX)
}

/// Appends `range`, which follows all of `ranges`. If fewer than `distance` pages are between it and the last one, both
/// become one.
fn append(ranges: &mut Vec<PageRange>, range: PageRange, distance: u32) {
    match ranges.last_mut() {
        Some(last) if range.first.saturating_sub(last.end()) < distance => {
            last.count = range.end().saturating_sub(last.first);
        }
        _ => ranges.push(range),
    }
}

/// What was written to the file.
#[derive(Default)]
struct Written {
    sum: ContentSum,
    data: Vec<PageRange>,
}

impl Written {
    /// Writes the blocks of `part` that are not zeros, neighbours together.
    fn write(&mut self, file: &File, position: u64, part: &[u8]) -> io::Result<()> {
        let blocks: Vec<&[u8]> = part.chunks(BLOCK).collect();
        let mut position = position;
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let length = run.iter().map(|block| block.len()).sum::<usize>() as u64;
            if !run.first().is_none_or(|block| is_zero(block)) {
                file.write_all_at(&run.concat(), position)?;
                let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
                let first = page_at(position);
                // Each range is a mapping of a restored VM.
                append(&mut self.data, PageRange { first, count }, SMALL_HOLE);
                for (block, at) in run.iter().zip((position..).step_by(BLOCK)) {
                    self.sum.add(at, block);
                }
            }
            position = position.saturating_add(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::ranges::{Range, Ranges};
    use crate::memory::{Backing, map};

    const MIB: u64 = 1 << 20;

    fn fill(memory: &Memory, address: u64, bytes: &[u8]) {
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    #[test]
    fn memory_is_written_with_holes_and_mapped_again() {
        let ranges = Ranges {
            boot: vec![
                Range {
                    start: 0,
                    bytes: 4 * MIB,
                },
                Range {
                    start: 1 << 32,
                    bytes: 3 * MIB,
                },
            ],
            hotplug: Ranges::of(1).hotplug,
        };
        let memory = map(&ranges, &Backing::Anonymous).unwrap();
        let places = [0, 4096, 4 * MIB - 4, 1 << 32, (1 << 32) + 3 * MIB - 4];
        for (place, value) in places.into_iter().zip(1_u32..) {
            fill(&memory, place, &value.to_le_bytes());
        }
        let file = tempfile::tempfile().unwrap();
        let (id, data) = write(&memory, &file).unwrap();
        let range = |first, count| PageRange { first, count };
        assert_eq!(data, [range(0, 2), range(1023, 2), range(1791, 1)]);
        assert_eq!(id, FileId::of(&file).unwrap());
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 7 * MIB);
        assert!(
            metadata.blocks() * 512 <= 64 << 10,
            "{} blocks",
            metadata.blocks()
        );

        let backing = Backing::File {
            file: file.try_clone().unwrap(),
            offset: 0,
            data,
        };
        let restored = map(&ranges, &backing).unwrap();
        for (place, value) in places.into_iter().zip(1_u32..) {
            assert_eq!(restored.read_obj::<u32>(GuestAddress(place)).unwrap(), value);
        }
        let none = BTreeSet::new();
        assert_eq!(written(&restored, &file, &none).unwrap(), []);
        fill(&restored, 8192, &[1]);
        fill(&restored, 4096 + 5, &[1]);
        fill(&restored, 1 << 32, &[9]);
        let changed = written(&restored, &file, &none).unwrap();
        assert_eq!(changed, [range(1, 2), range(1024, 1)]);
        let logged = BTreeSet::from([2, 3, 1791]);
        let all = written(&restored, &file, &logged).unwrap();
        assert_eq!(all, [range(1, 3), range(1024, 1), range(1791, 1)]);
        // Given back to the host, which the log does not have.
        fill(&restored, 4 * MIB - 4, &[0; 4]);
        assert_eq!(written(&restored, &file, &none).unwrap(), changed);
        fill(&restored, 4 * MIB - 4, &[3, 0, 0, 0]);
        fill(&restored, 4096 + 5, &[0]);
        fill(&restored, 1 << 32, &[4]);
        let again = tempfile::tempfile().unwrap();
        assert_ne!(write(&restored, &again).unwrap().0.sum, id.sum);
        fill(&restored, 8192, &[0]);
        let again = tempfile::tempfile().unwrap();
        assert_eq!(write(&restored, &again).unwrap().0.sum, id.sum);
        assert_eq!(id.compare(&file).unwrap(), Ok(()), "the file was changed");
    }

    #[test]
    fn small_holes_are_data() {
        let mut data = Vec::new();
        let range = |first, count| PageRange { first, count };
        for (first, count) in [(3, 2), (5, 1), (6 + SMALL_HOLE - 1, 4), (1000, 1)] {
            append(&mut data, range(first, count), SMALL_HOLE);
        }
        assert_eq!(data, [range(3, 2 + 1 + SMALL_HOLE - 1 + 4), range(1000, 1)]);
    }
}
