//! The registers of one queue. The driver sets size and addresses; they are checked against guest memory when
//! it makes the queue ready (virtio 1.2, 2.7). Called by the transport; never reads or writes a ring.

use virtio_queue::{Queue, QueueState, QueueT as _};

use crate::virtio::Memory;
use crate::virtio::rings::{BadRings, Ring, Rings};

/// Half of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 31:0.
    Low,
    /// Bits 63:32.
    High,
}

impl Half {
    /// `register` with this half replaced by `value`.
    pub(crate) fn replace(self, register: u64, value: u32) -> u64 {
        match self {
            Self::Low => register & !u64::from(u32::MAX) | u64::from(value),
            Self::High => register & u64::from(u32::MAX) | u64::from(value) << 32,
        }
    }

    /// This half of `register`.
    pub(crate) fn of(self, register: u64) -> u32 {
        let half = match self {
            Self::Low => register & u64::from(u32::MAX),
            Self::High => register >> 32,
        };
        u32::try_from(half).unwrap_or_default()
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

    /// As the driver wrote it; the largest size at first.
    pub(super) fn size(&self) -> u16 {
        u16::try_from(self.size).unwrap_or(0)
    }

    /// The addresses of descriptor table, available and used ring.
    pub(super) fn addresses(&self) -> [u64; 3] {
        self.addresses
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn set_size(&mut self, size: u32) {
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
