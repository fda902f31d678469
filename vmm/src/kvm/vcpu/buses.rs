//! What a guest's port and MMIO accesses reach, shared by all vCPU threads. Created by the machine's steps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bus::Bus;

/// The buses, shared by all vCPU threads and constant once the first of them runs.
pub struct IoBuses {
    /// Port I/O.
    pub ports: Bus,
    /// MMIO: guest-physical addresses that are not RAM.
    pub mmio: Bus,
    /// Counters of the exits that are not an access to a bus.
    pub other_exits: OtherExits,
}

impl IoBuses {
    /// Handles reads of the port `port`, each of `size` bytes, until `data` is full. Without string
    /// instructions it is one read.
    pub(super) fn read_port(&self, port: u16, size: usize, data: &mut [u8]) {
        for access in data.chunks_mut(size.max(1)) {
            self.ports.read(u64::from(port), access);
        }
    }

    /// Handles writes of the port `port`, each of the next `size` bytes of `data`.
    pub(super) fn write_port(&self, port: u16, size: usize, data: &[u8]) {
        for access in data.chunks(size.max(1)) {
            self.ports.write(u64::from(port), access);
        }
    }
}

/// Counters of exits that are neither port I/O nor MMIO.
#[derive(Debug, Default)]
pub struct OtherExits {
    interrupted: AtomicU64,
    unexpected: AtomicU64,
}

impl OtherExits {
    pub(super) fn add_interrupted(&self) {
        self.interrupted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_unexpected(&self) {
        self.unexpected.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the counters that are not 0 to `counts`.
    pub fn add_counts(&self, counts: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("interrupted", &self.interrupted),
            ("unexpected", &self.unexpected),
        ] {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                counts.insert(name.to_owned(), count);
            }
        }
    }
}
