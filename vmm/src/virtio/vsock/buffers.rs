//! The bytes of a descriptor chain as one sequence, wherever the driver divided it into buffers (virtio 1.2,
//! 2.7.4.2: a device must not assume any framing). Used by the data path for packets in either direction.
//! Copies nothing but what it is asked to; never touches memory outside of the chain's buffers.

use vm_memory::{Address as _, GuestAddress, GuestMemory as _, VolatileSlice};

use crate::memory::Memory;
use crate::virtio::worker::Chain;

/// Most descriptors of a chain that are read; a longer chain ends there. The queues have as many descriptors,
/// and a driver must not make a longer chain, in an indirect table either (virtio 1.2, 2.7.5.3.1).
const MAX_DESCRIPTORS: usize = 256;

/// A buffer inside of guest memory; its length is not 0.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    address: GuestAddress,
    length: u32,
}

/// The buffers of one chain at a time. Keeps its allocation, so that a packet needs none.
#[derive(Debug, Default)]
pub struct BufferList(Vec<Buffer>);

impl BufferList {
    /// The device-readable bytes of `chain`.
    pub fn readable<'a>(&'a mut self, memory: &'a Memory, chain: Chain) -> Buffers<'a> {
        self.collect(memory, chain, false)
    }

    /// The device-writable bytes of `chain`.
    pub fn writable<'a>(&'a mut self, memory: &'a Memory, chain: Chain) -> Buffers<'a> {
        self.collect(memory, chain, true)
    }

    /// Reads each descriptor once: the driver could change it in between. The first buffer that is not wholly
    /// in guest memory ends the sequence.
    fn collect<'a>(&'a mut self, memory: &'a Memory, chain: Chain, writable: bool) -> Buffers<'a> {
        self.0.clear();
        let mut length = 0_u32;
        let buffers = chain
            .take(MAX_DESCRIPTORS)
            .filter(|descriptor| descriptor.is_write_only() == writable && descriptor.len() > 0)
            .map(|descriptor| Buffer {
                address: descriptor.addr(),
                length: descriptor.len(),
            });
        for buffer in buffers {
            let Some(sum) = length.checked_add(buffer.length) else {
                break;
            };
            if slice_of(memory, buffer).is_none() {
                break;
            }
            length = sum;
            self.0.push(buffer);
        }
        Buffers {
            memory,
            list: &self.0,
            start: 0,
            length,
        }
    }
}

fn slice_of(memory: &Memory, buffer: Buffer) -> Option<VolatileSlice<'_>> {
    let length = usize::try_from(buffer.length).ok()?;
    memory.get_slice(buffer.address, length).ok()
}

/// A range of the bytes of a chain.
#[derive(Clone, Copy)]
pub struct Buffers<'a> {
    memory: &'a Memory,
    list: &'a [Buffer],
    /// Bytes of `list` before this range.
    start: u32,
    length: u32,
}

impl<'a> Buffers<'a> {
    /// The number of bytes.
    pub fn len(self) -> u32 {
        self.length
    }

    /// The first `length` bytes; None if there are fewer.
    pub fn first(self, length: u32) -> Option<Self> {
        (length <= self.length).then_some(Self { length, ..self })
    }

    /// What follows the first `length` bytes; None if there are fewer.
    pub fn after(self, length: u32) -> Option<Self> {
        Some(Self {
            start: self.start.checked_add(length)?,
            length: self.length.checked_sub(length)?,
            ..self
        })
    }

    /// The contiguous parts of the range, in order. None is empty.
    pub fn slices(self) -> impl Iterator<Item = VolatileSlice<'a>> {
        let (mut skip, mut left) = (self.start, self.length);
        self.list.iter().filter_map(move |buffer| {
            let skipped = skip.min(buffer.length);
            let length = buffer.length.saturating_sub(skipped).min(left);
            skip = skip.saturating_sub(skipped);
            left = left.saturating_sub(length);
            if length == 0 {
                return None;
            }
            let address = buffer.address.checked_add(skipped.into())?;
            slice_of(self.memory, Buffer { address, length })
        })
    }

    /// Copies the first `N` bytes out of guest memory; None if there are fewer.
    pub fn read<const N: usize>(self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut rest = bytes.as_mut_slice();
        for slice in self.first(u32::try_from(N).ok()?)?.slices() {
            let copied = slice.copy_to(rest);
            rest = rest.get_mut(copied..)?;
        }
        rest.is_empty().then_some(bytes)
    }

    /// Copies `bytes` to the start of the range; None if they do not fit.
    pub fn write(self, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        for slice in self.first(u32::try_from(bytes.len()).ok()?)?.slices() {
            slice.copy_from(rest);
            rest = rest.get(slice.len()..)?;
        }
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "sizes of a test guest are small")]
mod tests {
    use std::sync::Arc;

    use virtio_queue::QueueOwnedT as _;

    use super::*;
    use crate::virtio::testing::{BUFFERS, Driver, Fields, INDIRECT, MEMORY_SIZE, NEXT, readable, writable};

    /// A driver, and a chain of `descriptors` in an indirect table.
    fn chain(descriptors: &[Fields]) -> (Driver, Chain) {
        let mut driver = Driver::new(&[16]);
        let table: Vec<Fields> = (1..)
            .zip(descriptors)
            .map(|(next, buffer)| {
                let more = usize::from(next) < descriptors.len();
                (buffer.0, buffer.1, buffer.2 | if more { NEXT } else { 0 }, next)
            })
            .collect();
        driver.set_table(BUFFERS, &table);
        driver.offer_raw(0, &[(BUFFERS, 16 * table.len() as u32, INDIRECT, 0)]);
        let mut queue = driver.activation(0).queues.remove(0).queue;
        let chain = queue.iter(Arc::clone(&driver.memory)).unwrap().next().unwrap();
        (driver, chain)
    }

    const DATA: u64 = BUFFERS + (1 << 20);

    #[test]
    fn the_bytes_of_one_direction_are_one_sequence() {
        let (driver, chain) = chain(&[
            readable(DATA, 3),
            readable(DATA + 100, 0),
            readable(DATA + 200, 4),
            writable(DATA + 300, 5),
            readable(DATA + 400, 1),
        ]);
        for (at, text) in [(0, "abc"), (200, "defg"), (400, "h")] {
            driver.set_bytes(DATA + at, text.as_bytes());
        }
        let mut list = BufferList::default();
        let writable = list.writable(&driver.memory, chain.clone());
        assert_eq!(writable.len(), 5);
        writable.write(b"12345").unwrap();
        assert!(writable.write(b"123456").is_none());
        assert_eq!(driver.bytes(DATA + 300, 5), b"12345");

        let bytes = list.readable(&driver.memory, chain);
        assert_eq!(bytes.read(), Some(*b"abcdefgh"));
        assert_eq!(bytes.read::<9>(), None);
        assert!(bytes.first(9).is_none() && bytes.after(9).is_none());
        for start in 0..=8_u32 {
            for end in start..=8 {
                let part = bytes.first(end).unwrap().after(start).unwrap();
                let mut text = Vec::new();
                for slice in part.slices() {
                    let mut bytes = vec![0; slice.len()];
                    assert!(!bytes.is_empty());
                    slice.copy_to(&mut bytes);
                    text.extend(bytes);
                }
                assert_eq!(text, b"abcdefgh"[start as usize..end as usize]);
                assert_eq!(part.len(), end - start);
            }
        }
    }

    #[test]
    fn the_sequence_ends_at_a_buffer_outside_of_memory() {
        for bad in [
            readable(MEMORY_SIZE - 1, 2),
            readable(u64::MAX, 2),
            readable(MEMORY_SIZE + 0x1000, 1),
            readable(DATA, u32::MAX),
        ] {
            let (driver, chain) = chain(&[readable(DATA, 3), bad, readable(DATA, 5)]);
            assert_eq!(BufferList::default().readable(&driver.memory, chain).len(), 3);
        }
    }

    #[test]
    fn a_chain_of_any_length_is_read_up_to_a_bound() {
        let mut list = BufferList::default();
        for (length, direction) in [
            (1, readable as fn(u64, u32) -> Fields),
            (0, readable),
            (1, writable),
        ] {
            let (driver, chain) = chain(&vec![direction(DATA, length); 5000]);
            let bytes = list.readable(&driver.memory, chain.clone()).len();
            assert_eq!(
                bytes,
                if direction(0, 0) == readable(0, 0) {
                    256 * length
                } else {
                    0
                }
            );
            assert!(list.writable(&driver.memory, chain).len() <= 256);
        }
        assert!(list.0.capacity() <= 256);
    }
}
