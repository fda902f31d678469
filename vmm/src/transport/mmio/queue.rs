//! The registers of one queue. The driver sets size and addresses; they are checked against guest memory when
//! it makes the queue ready (virtio 1.2, 2.7). Called by the transport; never reads or writes a ring.

use virtio_queue::{Queue, QueueState, QueueT as _};
use vm_memory::{GuestAddress, GuestMemory as _};

use crate::virtio::Memory;

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

/// The registers of a queue.
#[derive(Debug)]
pub(super) struct QueueSetup {
    max_size: u16,
    /// As the driver wrote it; a valid one fits into 16 bits.
    size: u32,
    addresses: [u64; 3],
    ready: bool,
}

impl QueueSetup {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            addresses: [0; 3],
            ready: false,
        }
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    pub(super) fn set_low(&mut self, ring: Ring, value: u32) {
        let address = self.address_mut(ring);
        *address = *address & !u64::from(u32::MAX) | u64::from(value);
    }

    pub(super) fn set_high(&mut self, ring: Ring, value: u32) {
        let address = self.address_mut(ring);
        *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
    }

    /// Makes the queue ready if its size is valid and all of its rings are in `memory`; otherwise returns
    /// what the driver did wrong, as the end of a log message.
    pub(super) fn make_ready(&mut self, memory: &Memory) -> Result<(), &'static str> {
        let size = u16::try_from(self.size).unwrap_or(0);
        if !size.is_power_of_two() || size > self.max_size {
            return Err("makes a queue of an invalid size ready");
        }
        for ring in [Ring::Descriptors, Ring::Available, Ring::Used] {
            let (alignment, bytes) = ring.alignment_and_length(size);
            let address = *self.address_mut(ring);
            if !address.is_multiple_of(alignment) {
                return Err("makes a queue with a misaligned ring ready");
            }
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            if !memory.check_range(GuestAddress(address), bytes) {
                return Err("makes a queue with a ring outside of guest memory ready");
            }
        }
        self.ready = true;
        Ok(())
    }

    pub(super) fn set_not_ready(&mut self) {
        self.ready = false;
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// The queue for the device. If the driver has not made it ready, it has no addresses and is not ready
    /// either.
    pub(super) fn queue(&self) -> Result<Queue, String> {
        if !self.ready {
            return Queue::new(self.max_size).map_err(|error| error.to_string());
        }
        let [desc_table, avail_ring, used_ring] = self.addresses;
        Queue::try_from(QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            // The device's worker sets this from the negotiated features.
            event_idx_enabled: false,
            size: u16::try_from(self.size).unwrap_or(0),
            ready: true,
            desc_table,
            avail_ring,
            used_ring,
        })
        .map_err(|error| error.to_string())
    }

    fn address_mut(&mut self, ring: Ring) -> &mut u64 {
        let [descriptors, available, used] = &mut self.addresses;
        match ring {
            Ring::Descriptors => descriptors,
            Ring::Available => available,
            Ring::Used => used,
        }
    }
}
