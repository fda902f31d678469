//! The configuration space of a device (virtio 1.2, 2.5): its bytes and their generation under one lock. The
//! transport reads and writes it for the driver, on vCPU threads; the device changes it, on any thread. It
//! knows no field of any device.
//!
//! Lock order: the watcher is called and an [`Interrupt`] is signalled under the lock, so neither may call
//! this object.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;

/// The configuration space of one device.
pub struct ConfigSpace {
    state: Mutex<State>,
    /// The bytes that the driver may write.
    writable: Range<usize>,
    /// Wakes the device's worker after the driver has written.
    wake: EventFd,
}

struct State {
    bytes: Vec<u8>,
    generation: u32,
    /// The driver has written since the last [`ConfigSpace::take_driver_write`].
    driver_wrote: bool,
    /// Set while the device is active.
    interrupt: Option<Arc<dyn Interrupt>>,
    watcher: Option<Watcher>,
}

/// Receives the bytes and their generation; see [`ConfigSpace::watch`].
type Watcher = Box<dyn Fn(&[u8], u32) + Send>;

/// Not all of these bytes exist and may be written by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at offset {offset:#x} of the configuration space are not writable")]
pub struct NotWritable {
    /// Of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: usize,
}

impl ConfigSpace {
    /// A configuration space that contains `bytes`, of which the driver may write those in `writable`. Each
    /// write of the driver's increments `wake`.
    pub(super) fn new(bytes: Vec<u8>, writable: Range<usize>, wake: EventFd) -> Self {
        Self {
            state: Mutex::new(State {
                bytes,
                generation: 0,
                driver_wrote: false,
                interrupt: None,
                watcher: None,
            }),
            writable,
            wake,
        }
    }

    /// Copies the bytes from `offset` on to `data`, with zeros beyond the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        copy_padded(&self.lock().bytes, offset, data);
    }

    /// Writes `data` for the driver and tells the device's worker, which calls
    /// [`super::worker::DataPath::on_config_write`]. The generation stays.
    ///
    /// # Errors
    /// [`NotWritable`] if the driver may not write all of these bytes; none is then written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), NotWritable> {
        let range = range_of(offset, data.len());
        let range =
            range.filter(|range| self.writable.start <= range.start && range.end <= self.writable.end);
        let mut state = self.lock();
        state.replace(range, data).ok_or(NotWritable {
            offset,
            length: data.len(),
        })?;
        state.driver_wrote = true;
        state.show();
        drop(state);
        // Fails only if the counter would overflow, and then the worker is awake.
        let _ = self.wake.write(1);
        Ok(())
    }

    /// Writes `data` for the device, changes the generation, and interrupts the driver if the device is
    /// active (virtio 1.2, 2.5.2 and 2.3).
    ///
    /// # Errors
    /// [`NotWritable`] if the configuration space ends before the last byte; nothing is then changed.
    pub fn update(&self, offset: u64, data: &[u8]) -> Result<(), NotWritable> {
        let mut state = self.lock();
        state.change(offset, data)?;
        if let Some(interrupt) = &state.interrupt {
            interrupt.signal_config();
        }
        Ok(())
    }

    /// As [`ConfigSpace::update`], without the interrupt: for what the driver's own request has changed.
    ///
    /// # Errors
    /// As [`ConfigSpace::update`].
    pub fn reflect(&self, offset: u64, data: &[u8]) -> Result<(), NotWritable> {
        self.lock().change(offset, data)
    }

    /// Changes with each [`ConfigSpace::update`] (virtio 1.2, 2.5.1).
    #[cfg(test)]
    pub fn generation(&self) -> u32 {
        self.lock().generation
    }

    /// The bytes and their generation.
    #[must_use]
    pub fn save(&self) -> (Vec<u8>, u32) {
        let state = self.lock();
        (state.bytes.clone(), state.generation)
    }

    /// Sets the bytes and their generation, before a driver uses them. False if there are more bytes or
    /// fewer.
    pub fn restore(&self, bytes: &[u8], generation: u32) -> bool {
        let mut state = self.lock();
        let fits = bytes.len() == state.bytes.len();
        if fits {
            state.bytes.copy_from_slice(bytes);
            state.generation = generation;
            state.show();
        }
        fits
    }

    /// Calls `watcher` now, and after each change before the driver is interrupted: the transport shows the
    /// driver what it gets. Replaces an earlier watcher.
    pub fn watch(&self, watcher: impl Fn(&[u8], u32) + Send + 'static) {
        let mut state = self.lock();
        state.watcher = Some(Box::new(watcher));
        state.show();
    }

    /// Sets the interrupt of the active device; None when it is no longer active.
    pub(super) fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.lock().interrupt = interrupt;
    }

    /// Whether the driver has written since the last call.
    pub(super) fn take_driver_write(&self) -> bool {
        std::mem::take(&mut self.lock().driver_wrote)
    }

    /// Nothing panics under the lock, but another thread's panic must not become this one's.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn show(&self) {
        if let Some(watcher) = &self.watcher {
            watcher(&self.bytes, self.generation);
        }
    }

    /// Writes `data` for the device and changes the generation.
    fn change(&mut self, offset: u64, data: &[u8]) -> Result<(), NotWritable> {
        let length = data.len();
        self.replace(range_of(offset, length), data)
            .ok_or(NotWritable { offset, length })?;
        self.generation = self.generation.wrapping_add(1);
        self.show();
        Ok(())
    }

    /// Copies `data` to `range`; None if that is None or ends beyond the bytes.
    fn replace(&mut self, range: Option<Range<usize>>, data: &[u8]) -> Option<()> {
        self.bytes.get_mut(range?)?.copy_from_slice(data);
        Some(())
    }
}

/// Copies `bytes` from `offset` on to `data`, with zeros beyond their end.
pub(crate) fn copy_padded(bytes: &[u8], offset: usize, data: &mut [u8]) {
    let tail = bytes.get(offset..).unwrap_or_default();
    let padded = tail.iter().copied().chain(std::iter::repeat(0));
    for (byte, value) in data.iter_mut().zip(padded) {
        *byte = value;
    }
}

fn range_of(offset: u64, length: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Interrupts;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// Eight bytes, 1 to 8, of which the driver may write those at 4 to 6.
    fn space() -> ConfigSpace {
        ConfigSpace::new((1..=8).collect(), 4..7, EventFd::new(EFD_NONBLOCK).unwrap())
    }

    fn all(space: &ConfigSpace) -> [u8; 8] {
        let mut bytes = [0; 8];
        space.read(0, &mut bytes);
        bytes
    }

    #[test]
    fn reads_any_width_anywhere_and_zeros_beyond_the_end() {
        for (offset, expected) in [
            (0, vec![1]),
            (3, vec![4, 5, 6]),
            (6, vec![7, 8, 0, 0]),
            (8, vec![0; 4]),
            (u64::MAX, vec![0; 8]),
            (0, vec![]),
        ] {
            let mut data = vec![0xee; expected.len()];
            space().read(offset, &mut data);
            assert_eq!(data, expected, "at {offset}");
        }
    }

    #[test]
    fn the_driver_writes_its_own_bytes_and_the_worker_is_told() {
        let space = space();
        assert!(!space.take_driver_write());
        space.write(4, &[0xa, 0xb]).unwrap();
        space.write(6, &[0xc]).unwrap();
        assert_eq!(all(&space), [1, 2, 3, 4, 0xa, 0xb, 0xc, 8]);
        assert_eq!(space.generation(), 0);
        assert_eq!(space.wake.read().unwrap(), 2);
        assert!(space.take_driver_write() && !space.take_driver_write());
    }

    #[test]
    fn a_write_outside_of_the_drivers_bytes_changes_nothing() {
        for (offset, length) in [
            (0, 1),
            (3, 2),
            (6, 2),
            (7, 1),
            (4, 4),
            (8, 1),
            (u64::MAX, 1),
            (5, 99),
        ] {
            let space = space();
            let data = vec![0xee; length];
            assert_eq!(space.write(offset, &data), Err(NotWritable { offset, length }));
            assert_eq!(
                all(&space),
                [1, 2, 3, 4, 5, 6, 7, 8],
                "{length} bytes at {offset}"
            );
            assert!(!space.take_driver_write());
            assert!(space.wake.read().is_err(), "the worker was woken");
        }
    }

    #[test]
    fn an_update_changes_the_generation_and_interrupts_an_active_driver() {
        let (space, interrupts) = (space(), Arc::new(Interrupts::default()));
        space.update(0, &[9]).unwrap();
        space.set_interrupt(Some(Arc::clone(&interrupts) as Arc<dyn Interrupt>));
        assert_eq!((space.generation(), interrupts.signals().config), (1, 0));
        space.update(6, &[9, 9]).unwrap();
        assert_eq!((space.generation(), interrupts.signals().config), (2, 1));
        space.set_interrupt(None);
        space.update(1, &[9]).unwrap();
        assert_eq!((space.generation(), interrupts.signals().config), (3, 1));
        assert_eq!(all(&space), [9, 9, 3, 4, 5, 6, 9, 9]);
        assert!(!space.take_driver_write());
    }

    #[test]
    fn a_reflected_change_does_not_interrupt_the_driver() {
        let (space, interrupts) = (space(), Arc::new(Interrupts::default()));
        space.set_interrupt(Some(Arc::clone(&interrupts) as Arc<dyn Interrupt>));
        space.reflect(0, &[9]).unwrap();
        assert!(space.reflect(8, &[9]).is_err());
        assert_eq!((space.generation(), interrupts.signals().config), (1, 0));
        assert_eq!(all(&space), [9, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_watcher_gets_the_bytes_at_once_and_after_each_change() {
        let space = space();
        let (sender, receiver) = std::sync::mpsc::channel();
        space.watch(move |bytes, generation| sender.send((bytes[4], generation)).unwrap());
        space.write(4, &[0xa]).unwrap();
        space.write(0, &[0xb]).unwrap_err();
        space.update(4, &[0xc]).unwrap();
        space.update(8, &[0xd]).unwrap_err();
        let seen: Vec<_> = receiver.try_iter().collect();
        assert_eq!(seen, [(5, 0), (0xa, 0), (0xc, 1)]);
    }

    #[test]
    fn an_update_beyond_the_end_changes_nothing() {
        for (offset, length) in [(8, 1), (7, 2), (u64::MAX, 1)] {
            let space = space();
            assert!(space.update(offset, &vec![0xee; length]).is_err());
            assert_eq!((all(&space), space.generation()), ([1, 2, 3, 4, 5, 6, 7, 8], 0));
        }
    }
}
