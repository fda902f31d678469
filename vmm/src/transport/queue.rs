//! The registers of one queue. The driver sets size and addresses; they are checked against guest memory when
//! it makes the queue ready (virtio 1.2, 2.7). Called by the transport; never reads or writes a ring.

use virtio_queue::{Queue, QueueState, QueueT as _};

use super::pci::saved::SavedQueue;
use crate::bus::Half;
use crate::memory::Memory;
use crate::virtio::rings::{BadRings, Ring, Rings};

/// The registers of a queue.
#[derive(Debug)]
pub(super) struct QueueSetup {
    max_size: u16,
    size: u16,
    addresses: [u64; 3],
    ready: bool,
}

impl QueueSetup {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            addresses: [0; 3],
            ready: false,
        }
    }

    /// As the driver wrote it; the largest size at first.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The addresses of descriptor table, available and used ring.
    pub(super) fn addresses(&self) -> [u64; 3] {
        self.addresses
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn set_size(&mut self, size: u16) {
        self.size = size;
    }

    /// Sets one half of a ring's address.
    pub(super) fn set_address(&mut self, ring: Ring, half: Half, value: u32) {
        let address = self.address_mut(ring);
        *address = half.replace(*address, value);
    }

    /// Makes the queue ready if its size is valid and all of its rings are in `memory`.
    pub(super) fn make_ready(&mut self, memory: &Memory) -> Result<(), BadRings> {
        let rings = Rings {
            size: self.size(),
            addresses: self.addresses,
        };
        rings.check(self.max_size, memory)?;
        self.ready = true;
        Ok(())
    }

    /// What the driver has set.
    pub(super) fn save(&self) -> SavedQueue {
        SavedQueue {
            size: self.size,
            addresses: self.addresses,
            ready: self.ready,
        }
    }

    /// Sets what the driver has set. The device checks the rings.
    pub(super) fn restore(&mut self, saved: &SavedQueue) {
        self.size = saved.size;
        self.addresses = saved.addresses;
        self.ready = saved.ready;
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
            size: self.size,
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
