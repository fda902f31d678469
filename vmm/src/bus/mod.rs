//! Port I/O and MMIO: finds the device at the address of a guest's access. Called by vCPU threads after an
//! exit. An access that no device claims reads as all ones; such a write is dropped.
//!
//! Lock order: each device has one lock, taken only here and only one at a time. A transport has a second one
//! ([`crate::transport::pci`]), taken after it; the machine, which pauses the device, takes only that one.
#![cfg_attr(
    not(any(test, feature = "fuzzing")),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod half;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::log::LimitedLog;

pub use self::half::Half;

/// A device with registers. The bus passes only accesses of 1 to 8 bytes that lie within the device's range.
pub trait BusDevice: Send {
    /// Reads the registers from `offset` on into `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the registers from `offset` on.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// An address space with its devices. Filled before the guest runs and constant afterwards.
pub struct Bus {
    /// "port" or "mmio", for counters and messages.
    kind: &'static str,
    slots: Vec<Slot>,
    unclaimed: Counters,
    log: LimitedLog,
}

struct Slot {
    base: u64,
    size: u64,
    name: String,
    counters: Counters,
    device: Mutex<Box<dyn BusDevice>>,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
}

/// A device's address range is taken or exceeds the address space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} at {base:#x} overlaps another device or the end of the address space")]
pub struct Overlap {
    /// Name of the device that could not be inserted.
    pub name: String,
    /// Its first address.
    pub base: u64,
}

impl Bus {
    /// An empty bus; `kind` is "port" or "mmio".
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            slots: Vec::new(),
            unclaimed: Counters::default(),
            log: LimitedLog::new(),
        }
    }

    /// Adds `device` with the addresses `base..base + size`.
    ///
    /// # Errors
    /// [`Overlap`] if another device has one of these addresses.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        base: u64,
        size: u64,
        device: Box<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        let name = name.into();
        let end = base.checked_add(size);
        let free = end.is_some_and(|end| {
            self.slots
                .iter()
                .all(|slot| end <= slot.base || slot.base.saturating_add(slot.size) <= base)
        });
        if !free {
            return Err(Overlap { name, base });
        }
        self.slots.push(Slot {
            base,
            size,
            name,
            counters: Counters::default(),
            device: Mutex::new(device),
        });
        Ok(())
    }

    /// Handles a guest's read of `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let Some((slot, offset)) = self.find(address, data.len()) else {
            self.unclaimed.reads.fetch_add(1, Ordering::Relaxed);
            self.log
                .write(|| format!("the guest reads {} {address:#x}, which no device has", self.kind));
            return data.fill(0xff);
        };
        slot.counters.reads.fetch_add(1, Ordering::Relaxed);
        slot.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    /// Handles a guest's write of `data` at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        let Some((slot, offset)) = self.find(address, data.len()) else {
            self.unclaimed.writes.fetch_add(1, Ordering::Relaxed);
            return self
                .log
                .write(|| format!("the guest writes {} {address:#x}, which no device has", self.kind));
        };
        slot.counters.writes.fetch_add(1, Ordering::Relaxed);
        slot.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }

    /// Adds the number of reads and writes of each device to `counts`, such as "port read serial".
    pub fn add_counts(&self, counts: &mut BTreeMap<String, u64>) {
        let named = self.slots.iter().map(|slot| (slot.name.as_str(), &slot.counters));
        for (name, counters) in named.chain([("unclaimed", &self.unclaimed)]) {
            for (verb, counter) in [("read", &counters.reads), ("write", &counters.writes)] {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    // Several devices may have the same name.
                    let sum = counts.entry(format!("{} {verb} {name}", self.kind)).or_default();
                    *sum = sum.saturating_add(count);
                }
            }
        }
    }

    /// The slot that contains all `length` addresses from `address` on, and the offset of `address` in it.
    fn find(&self, address: u64, length: usize) -> Option<(&Slot, u64)> {
        let length = u64::try_from(length).ok()?;
        self.slots.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.base)?;
            (offset.checked_add(length)? <= slot.size).then_some((slot, offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Register(u8);

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).unwrap());
        }

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new("port");
        bus.insert("register", 0x100, 4, Box::new(Register::default()))
            .unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_its_device_at_the_right_offset() {
        let bus = bus();
        bus.write(0x100, &[7]);
        let mut data = [0; 2];
        bus.read(0x102, &mut data);
        assert_eq!(data, [9, 9]);
    }

    #[test]
    fn unclaimed_addresses_and_accesses_across_a_boundary_read_as_ones() {
        let bus = bus();
        for address in [0, 0xff, 0x103, 0x104, u64::MAX] {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            bus.write(address, &data);
            assert_eq!(data, [0xff, 0xff], "{address:#x}");
        }
        let mut counts = BTreeMap::new();
        bus.add_counts(&mut counts);
        assert_eq!(counts["port read unclaimed"], 5);
        assert_eq!(counts["port write unclaimed"], 5);
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = bus();
        for (base, size) in [(0x103, 1), (0xfd, 4), (0, u64::MAX), (u64::MAX, 2)] {
            assert!(
                bus.insert("other", base, size, Box::new(Register::default()))
                    .is_err(),
                "{base:#x}"
            );
        }
        bus.insert("other", 0x104, 4, Box::new(Register::default()))
            .unwrap();
    }
}
