//! Ranges of guest memory as readv(2) and its relatives take them, so that data go between a file of the host
//! and the guest's pages without another copy. Used by the data paths of devices that have a file. Makes no
//! system call and never reads or writes a range.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory as _};

use crate::memory::Memory;

/// Most ranges of one system call (UIO_MAXIOV).
pub const MAX_VECTORS: usize = 1024;

/// Ranges of guest memory for one or more buffers. Keeps its allocation, so that a request needs none.
pub struct Vectors {
    /// Keeps the ranges mapped: guest memory grows, but never loses a part.
    memory: Arc<Memory>,
    list: Vec<libc::iovec>,
}

impl Vectors {
    /// No ranges. Those of the first `capacity` need no allocation; at most [`MAX_VECTORS`] can be added.
    pub fn with_capacity(memory: Arc<Memory>, capacity: usize) -> Self {
        Self {
            memory,
            list: Vec::with_capacity(capacity),
        }
    }

    /// Guest memory has grown.
    pub fn set_memory(&mut self, memory: &Arc<Memory>) {
        self.memory = Arc::clone(memory);
    }

    /// The number of ranges.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Appends `length` bytes from `address` on; false if they are not wholly in one region of guest memory,
    /// or if there are [`MAX_VECTORS`] ranges already.
    pub fn push(&mut self, address: GuestAddress, length: u32) -> bool {
        let iov_len = usize::try_from(length).unwrap_or(usize::MAX);
        let Ok(slice) = self.memory.get_slice(address, iov_len) else {
            return false;
        };
        if self.list.len() >= MAX_VECTORS {
            return false;
        }
        self.list.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len,
        });
        true
    }

    /// Removes the first `count` ranges.
    pub fn remove_first(&mut self, count: usize) {
        self.list.drain(..count.min(self.list.len()));
    }

    /// Removes all ranges but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.list.truncate(count);
    }

    /// Removes the first `bytes` bytes, which have been transferred.
    pub fn advance(&mut self, bytes: usize) {
        let mut left = bytes;
        let whole = self.list.iter().take_while(|vector| {
            let is_whole = vector.iov_len <= left;
            if is_whole {
                left = left.saturating_sub(vector.iov_len);
            }
            is_whole
        });
        let whole = whole.count();
        self.remove_first(whole);
        if let Some(first) = self.list.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(left);
            first.iov_len = first.iov_len.saturating_sub(left);
        }
    }

    /// The first `count` ranges, or all if there are fewer, as a system call takes them. The pointer is valid
    /// until ranges are added or removed.
    pub fn first(&self, count: usize) -> (*const libc::iovec, libc::c_int) {
        let count = libc::c_int::try_from(count.min(self.list.len())).unwrap_or_default();
        (self.list.as_ptr(), count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Vectors {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x4000), 0x1000)]);
        Vectors::with_capacity(Arc::new(memory.unwrap()), 4)
    }

    #[test]
    fn only_ranges_inside_of_guest_memory_are_added() {
        let mut vectors = vectors();
        for (address, length) in [
            (0x1fff, 2),
            (0x2000, 1),
            (0x4fff, 2),
            (u64::MAX, 2),
            (0, u32::MAX),
        ] {
            assert!(
                !vectors.push(GuestAddress(address), length),
                "{address:#x} {length}"
            );
        }
        for _ in 0..MAX_VECTORS {
            assert!(vectors.push(GuestAddress(0x4000), 0x1000));
        }
        assert!(!vectors.push(GuestAddress(0), 1), "too many");
    }

    #[test]
    fn transferred_bytes_are_removed_from_the_front() {
        for (bytes, left) in [
            (0, vec![(0, 0x10), (0x100, 0x20)]),
            (0xf, vec![(0xf, 1), (0x100, 0x20)]),
            (0x10, vec![(0x100, 0x20)]),
            (0x11, vec![(0x101, 0x1f)]),
            (0x2f, vec![(0x11f, 1)]),
            (0x30, vec![]),
            (usize::MAX, vec![]),
        ] {
            let mut vectors = vectors();
            assert!(vectors.push(GuestAddress(0), 0x10) && vectors.push(GuestAddress(0x100), 0x20));
            let start = vectors.list[0].iov_base.addr();
            vectors.advance(bytes);
            let ranges = vectors.list.iter();
            let ranges = ranges.map(|vector| (vector.iov_base.addr() - start, vector.iov_len));
            assert_eq!(ranges.collect::<Vec<_>>(), left, "{bytes} bytes");
        }
    }
}
