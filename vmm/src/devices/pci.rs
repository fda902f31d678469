//! The PCI bus: configuration space accesses by memory (ECAM) to the functions in its slots, and by ports to
//! nothing. Called by vCPU threads.
//!
//! Linux accesses the first 256 bytes of a configuration space by ports whenever these work, with two exits
//! for each access, but only in segment 0. So the devices are in segment 1. The ports respond only because
//! Linux would otherwise print that it found no PCI, with an exit for each character.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;

/// Number of configuration ports: address and data, 4 each.
pub const PORTS: u16 = 8;
/// The segment of the devices.
pub const SEGMENT: u16 = 1;
/// Size of the window on the configuration spaces of one bus, in bytes.
pub const ECAM_BYTES: u64 = 1 << 20;
/// Most devices, one per slot.
pub const MAX_SLOTS: u8 = 32;

/// Distance of the first functions of two slots in the window, as a power of 2.
const SLOT_SHIFT: u32 = 15;
/// Size of a function's configuration space, in bytes.
const FUNCTION_BYTES: u64 = 4096;
/// Class code of a host bridge.
const HOST_BRIDGE: [u8; 2] = 0x0600u16.to_le_bytes();
/// Address register: the class code of the first function, enabled.
const FIRST_CLASS: u32 = 0x8000_0008;

/// The offset in the window of the configuration space in `slot`.
#[must_use]
pub fn slot_offset(slot: u8) -> u64 {
    u64::from(slot) << SLOT_SHIFT
}

/// A window of addresses in which each slot of the bus has a part: the configuration spaces, or the BARs. The
/// part of an empty slot reads as all ones. Clones are the same window: one is on the bus, one is with the
/// machine, which fills slots while the guest runs.
///
/// Lock order: a function's lock is held during an access to it, which takes the transport's lock and may wait
/// for the device's worker. The window's lock is held only to look a function up, and never with another one.
#[derive(Clone)]
pub struct SlotWindow {
    /// The slot of the window's first address.
    first: u8,
    /// Distance of two slots' parts, in bytes.
    distance: u64,
    /// Size of a part, in bytes.
    bytes: u64,
    functions: Arc<Mutex<BTreeMap<u8, Function>>>,
}

/// The registers in a slot's part of a window; None once they are removed.
type Function = Arc<Mutex<Option<Box<dyn BusDevice>>>>;

impl SlotWindow {
    /// The window on the configuration spaces of all slots.
    #[must_use]
    pub fn config() -> Self {
        Self::new(0, slot_offset(1), FUNCTION_BYTES)
    }

    /// The window on one BAR, of `bytes`, of each slot from `first` on.
    #[must_use]
    pub fn bar(first: u8, bytes: u64) -> Self {
        Self::new(first, bytes, bytes)
    }

    fn new(first: u8, distance: u64, bytes: u64) -> Self {
        Self {
            first,
            distance,
            bytes,
            functions: Arc::default(),
        }
    }

    fn functions(&self) -> MutexGuard<'_, BTreeMap<u8, Function>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a function's registers into `slot`.
    pub fn insert(&self, slot: u8, function: Box<dyn BusDevice>) {
        self.functions()
            .insert(slot, Arc::new(Mutex::new(Some(function))));
    }

    /// Empties `slot`. When this returns, no access to its registers is under way.
    pub fn remove(&self, slot: u8) {
        let removed = self.functions().remove(&slot);
        if let Some(function) = removed {
            // An access that has found it before waits for this lock, or has it.
            lock(&function).take();
        }
    }

    /// Calls `access` with the function at `offset` and the offset in its part; None if there is none.
    fn access<T>(&self, offset: u64, access: impl FnOnce(&mut dyn BusDevice, u64) -> T) -> Option<T> {
        let slot = u8::try_from(offset.checked_div(self.distance)?).ok()?;
        let in_slot = offset.checked_rem(self.distance)?;
        let slot = slot.checked_add(self.first)?;
        let function = Arc::clone(self.functions().get(&slot)?);
        let mut function = lock(&function);
        let function = function.as_mut().filter(|_| in_slot < self.bytes)?;
        Some(access(function.as_mut(), in_slot))
    }
}

fn lock(function: &Function) -> MutexGuard<'_, Option<Box<dyn BusDevice>>> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BusDevice for SlotWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let found = self.access(offset, |function, offset| function.read(offset, data));
        if found.is_none() {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // A write to an empty slot has no effect.
        let _ = self.access(offset, |function, offset| function.write(offset, data));
    }
}

/// The configuration ports of segment 0, which is empty. Only the class code of its first function reads as
/// that of a host bridge: Linux looks for one to see whether the ports work.
/// Clones are the same ports.
#[derive(Debug, Clone, Default)]
pub struct EmptyPorts {
    address: Arc<Mutex<[u8; 4]>>,
}

impl EmptyPorts {
    /// The address register.
    #[must_use]
    pub fn address(&self) -> [u8; 4] {
        *self.lock()
    }

    /// Sets the address register.
    pub fn set_address(&self, address: [u8; 4]) {
        *self.lock() = address;
    }

    fn lock(&self) -> MutexGuard<'_, [u8; 4]> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for EmptyPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address()),
            (6, 2) if u32::from_le_bytes(self.address()) == FIRST_CLASS => data.copy_from_slice(&HOST_BRIDGE),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.set_address(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    #[test]
    fn the_address_reads_back_and_only_a_host_bridge_is_visible() {
        let mut ports = EmptyPorts::default();
        ports.write(3, &[1]);
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        let mut word = [0; 4];
        ports.read(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0x8000_0000);
        ports.read(4, &mut word);
        assert_eq!(word, [0xff; 4], "its vendor");
        let mut class = [0; 2];
        ports.read(6, &mut class);
        assert_eq!(class, [0xff; 2]);
        ports.write(0, &FIRST_CLASS.to_le_bytes());
        ports.read(6, &mut class);
        assert_eq!(class, HOST_BRIDGE);
    }

    struct Slot(u8);

    impl BusDevice for Slot {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset & 0xf).unwrap());
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    #[test]
    fn each_slot_has_one_function_and_empty_ones_read_as_ones() {
        let mut window = SlotWindow::config();
        window.insert(0, Box::new(Slot(0x10)));
        window.insert(1, Box::new(Slot(0x20)));
        window.write(slot_offset(1) + 4, &[0x30]);
        for (offset, expected) in [
            (1, 0x11),
            (slot_offset(1) + 2, 0x32),
            (0xfff, 0x1f),
            (0x1000, 0xff),
            (slot_offset(1) - 1, 0xff),
            (slot_offset(2), 0xff),
            (ECAM_BYTES - 1, 0xff),
            (u64::MAX, 0xff),
        ] {
            let mut byte = [0];
            window.read(offset, &mut byte);
            window.write(slot_offset(2), &byte);
            assert_eq!(byte, [expected], "{offset:#x}");
        }
    }

    /// A write to it waits, as a reset does for a worker in a slow system call.
    struct Slow {
        begun: Sender<()>,
        end: Receiver<()>,
    }

    impl BusDevice for Slow {
        fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
        fn write(&mut self, _offset: u64, _data: &[u8]) {
            self.begun.send(()).unwrap();
            self.end.recv().unwrap();
        }
    }

    #[test]
    fn a_slow_function_delays_no_other_and_is_removed_after_its_access() {
        let window = SlotWindow::bar(0, 0x2000);
        let ((begun, has_begun), (end, has_ended)) = (channel(), channel());
        window.insert(
            0,
            Box::new(Slow {
                begun,
                end: has_ended,
            }),
        );
        let mut on_the_bus = window.clone();
        let vcpu = std::thread::spawn(move || on_the_bus.write(0, &[1]));
        has_begun.recv().unwrap();
        window.insert(1, Box::new(Slot(7)));
        let mut byte = [0];
        window.clone().read(0x2000, &mut byte);
        assert_eq!(byte, [7]);
        window.remove(1);
        let (removed, is_removed) = channel();
        let remover = std::thread::spawn(move || {
            window.remove(0);
            removed.send(()).unwrap();
        });
        let moment = std::time::Duration::from_millis(50);
        assert!(
            is_removed.recv_timeout(moment).is_err(),
            "removed during an access"
        );
        end.send(()).unwrap();
        remover.join().unwrap();
        vcpu.join().unwrap();
    }

    #[test]
    fn a_slot_is_filled_and_emptied_while_the_window_is_on_the_bus() {
        let window = SlotWindow::bar(3, 0x2000);
        let mut on_the_bus = window.clone();
        let mut read = |offset| {
            let mut byte = [0];
            on_the_bus.read(offset, &mut byte);
            byte[0]
        };
        assert_eq!(read(0x2001), 0xff);
        window.insert(4, Box::new(Slot(0x10)));
        assert_eq!([read(0x2001), read(1), read(0x4000)], [0x11, 0xff, 0xff]);
        window.remove(4);
        assert_eq!(read(0x2001), 0xff);
        assert_eq!(read(u64::MAX), 0xff);
    }
}
