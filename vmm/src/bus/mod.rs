//! What the guest reaches by an exit: a port or a memory address, looked up here once for all devices. Called by
//! vCPU threads. An access that meets no device reads as all ones; a write to nowhere is dropped.
//!
//! Lock order: a device's lock is taken here and nowhere else, one at a time.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::log::Limited;

/// Something with registers. Offsets are within its range; accesses are 1 to 8 bytes wide.
pub trait BusDevice: Send {
    /// Fills `data` from `offset` on.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Devices by address. Made before the guest runs, then only read.
pub struct Bus {
    /// "port" or "mmio", for counters and messages.
    kind: &'static str,
    slots: Vec<Slot>,
    nowhere: Counters,
    log: Limited,
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

/// Why a device can't be put on the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} at {base:#x} overlaps another device or the end")]
pub struct Overlap {
    /// Which.
    pub name: String,
    /// Where.
    pub base: u64,
}

impl Bus {
    /// An empty bus of `kind`.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            slots: Vec::new(),
            nowhere: Counters::default(),
            log: Limited::new(),
        }
    }

    /// Puts `device` at `base`, `size` addresses long.
    ///
    /// # Errors
    /// [`Overlap`] where another device is.
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

    /// The guest reads.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let Some((slot, offset)) = self.find(address, data.len()) else {
            self.nowhere.reads.fetch_add(1, Ordering::Relaxed);
            self.log
                .say(|| format!("the guest reads {} {address:#x}: nothing there", self.kind));
            return data.fill(0xff);
        };
        slot.counters.reads.fetch_add(1, Ordering::Relaxed);
        slot.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    /// The guest writes.
    pub fn write(&self, address: u64, data: &[u8]) {
        let Some((slot, offset)) = self.find(address, data.len()) else {
            self.nowhere.writes.fetch_add(1, Ordering::Relaxed);
            return self
                .log
                .say(|| format!("the guest writes {} {address:#x}: nothing there", self.kind));
        };
        slot.counters.writes.fetch_add(1, Ordering::Relaxed);
        slot.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }

    /// Adds how often each device was read and written to `counts`.
    pub fn count(&self, counts: &mut BTreeMap<String, u64>) {
        let named = self.slots.iter().map(|slot| (slot.name.as_str(), &slot.counters));
        for (name, counters) in named.chain([("nowhere", &self.nowhere)]) {
            for (verb, counter) in [("read", &counters.reads), ("write", &counters.writes)] {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    counts.insert(format!("{} {verb} {name}", self.kind), count);
                }
            }
        }
    }

    /// The device that has all of the `length` addresses, with the offset in it.
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
    fn an_access_reaches_its_device_with_the_offset() {
        let bus = bus();
        bus.write(0x100, &[7]);
        let mut data = [0; 2];
        bus.read(0x102, &mut data);
        assert_eq!(data, [9, 9]);
    }

    #[test]
    fn nowhere_reads_as_ones_and_so_does_half_a_device() {
        let bus = bus();
        for address in [0, 0xff, 0x103, 0x104, u64::MAX] {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            bus.write(address, &data);
            assert_eq!(data, [0xff, 0xff], "{address:#x}");
        }
        let mut counts = BTreeMap::new();
        bus.count(&mut counts);
        assert_eq!(counts["port read nowhere"], 5);
        assert_eq!(counts["port write nowhere"], 5);
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn devices_do_not_overlap() {
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
