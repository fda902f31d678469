//! Where a split virtqueue may lie (virtio 1.2, 2.7): the one check of its size and its three rings. The
//! transport calls it when the driver enables a queue, the worker before it serves one. Pure; never reads or
//! writes a ring.

use virtio_queue::{Queue, QueueT as _};
use vm_memory::{GuestAddress, GuestMemory as _};

use crate::memory::Memory;

/// One of the three areas of a split virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Descriptor table.
    Descriptors,
    /// Available ring, written by the driver.
    Available,
    /// Used ring, written by the device.
    Used,
}

impl Ring {
    /// Alignment and length in bytes for a queue with `size` entries (virtio 1.2, 2.7).
    fn alignment_and_length(self, size: u16) -> (u64, u64) {
        let size = u64::from(size);
        match self {
            Self::Descriptors => (16, size.saturating_mul(16)),
            Self::Available => (2, size.saturating_mul(2).saturating_add(6)),
            Self::Used => (4, size.saturating_mul(8).saturating_add(6)),
        }
    }
}

/// Size and addresses of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    /// Number of entries.
    pub size: u16,
    /// Descriptor table, available ring, used ring.
    pub addresses: [u64; 3],
}

/// Why a queue is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRings {
    /// The size must be a power of two, and not exceed the largest size.
    #[error("the size is invalid")]
    Size,
    /// The address of this ring is not aligned.
    #[error("{0:?}: misaligned")]
    Misaligned(Ring),
    /// Part of this ring is outside of guest memory.
    #[error("{0:?}: outside of guest memory")]
    Outside(Ring),
}

impl Rings {
    /// The rings of `queue`.
    #[must_use]
    pub fn of(queue: &Queue) -> Self {
        Self {
            size: queue.size(),
            addresses: [queue.desc_table(), queue.avail_ring(), queue.used_ring()],
        }
    }

    /// Checks that the size is valid, and that each ring is aligned and lies in `memory` completely.
    ///
    /// # Errors
    /// [`BadRings`] with the first thing that is wrong.
    pub fn check(&self, max_size: u16, memory: &Memory) -> Result<(), BadRings> {
        if !self.size.is_power_of_two() || self.size > max_size {
            return Err(BadRings::Size);
        }
        for (ring, address) in [Ring::Descriptors, Ring::Available, Ring::Used]
            .into_iter()
            .zip(self.addresses)
        {
            let (alignment, bytes) = ring.alignment_and_length(self.size);
            if !address.is_multiple_of(alignment) {
                return Err(BadRings::Misaligned(ring));
            }
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            if !memory.check_range(GuestAddress(address), bytes) {
                return Err(BadRings::Outside(ring));
            }
        }
        Ok(())
    }
}
