//! Random operations on a device: a hostile driver beside a VM that is paused and resumed at any time. Used
//! by a test of each device. The sequence of operations is the same in every run; how the worker's thread
//! interleaves with it is not.

use super::{BUFFERS, Device, Driver, Prng, Report, malformed_chains, readable, writable};

/// Environment variable with the number of operations.
const OPERATIONS: &str = "NACRE_RANDOM_OPERATIONS";
/// The number without it, for a test of a second or so.
const DEFAULT_OPERATIONS: u64 = 100_000;
/// Where requests and replies lie: slots of this many bytes from [`BUFFERS`].
const SLOT_BYTES: u64 = 128 * 1024;
const SLOTS: u64 = 64;

/// Performs random operations on `device`, which belongs to `driver` and is active: well-formed and malformed
/// chains, kicks, accesses to the configuration space from both sides, resets, pauses. `request` makes the
/// bytes of a request that the device may find valid. At the end the device is reset and the rings are empty.
///
/// Panics if the device's worker panics, or does not answer a reset or a pause.
pub fn hammer(driver: &mut Driver, device: &mut Device, mut request: impl FnMut(&mut Prng) -> Vec<u8>) {
    let operations = std::env::var(OPERATIONS).map_or(DEFAULT_OPERATIONS, |count| count.parse().unwrap());
    let mut hammer = Hammer {
        queues: device.queue_sizes().len() as u64,
        driver,
        device,
        prng: Prng(0x5eed),
        is_active: true,
        malformed: malformed_chains().into_iter().map(|(_, chain)| chain).collect(),
        used: 0,
    };
    for _ in 0..operations {
        hammer.operation(&mut request);
    }
    println!("{operations} operations, {} chains used", hammer.used);
    assert!(
        hammer.used > operations / 100,
        "of {operations} operations, only {} were served chains",
        hammer.used
    );
    device.resume().unwrap();
    device.reset().unwrap();
    driver.restart();
    for report in driver.reports.try_iter() {
        assert!(matches!(report, Report::Stopped { .. }), "{report:?}");
    }
}

struct Hammer<'a> {
    driver: &'a mut Driver,
    device: &'a mut Device,
    queues: u64,
    prng: Prng,
    is_active: bool,
    malformed: Vec<Vec<super::Fields>>,
    /// Chains that the device has returned.
    used: u64,
}

impl Hammer<'_> {
    fn operation(&mut self, request: &mut impl FnMut(&mut Prng) -> Vec<u8>) {
        let queue = self.prng.below(self.queues) as usize;
        match self.prng.below(1000) {
            0..500 => {
                self.offer(queue, request);
                if self.prng.below(4) != 0 {
                    self.driver.kick_if_wanted(queue);
                }
            }
            500..700 => self.driver.kick(queue),
            700..800 => self.read_config(),
            800..850 => self.write_config(),
            850..950 => while_some(|| self.driver.take_used(queue), &mut self.used),
            950..951 => {
                let index = self.prng.next() as u16;
                self.driver.set_available_index(queue, index);
            }
            951..954 => drop(self.device.pause().unwrap()),
            954..970 => self.device.resume().unwrap(),
            970..998 => {
                // Waits for the worker, which is otherwise slower than this loop.
                self.device.pause().unwrap();
                self.device.resume().unwrap();
            }
            _ => self.reset(),
        }
        // Sooner or later, a driver resets a device that needs it, and activates one that it has reset.
        if (self.driver.needs_reset() || !self.is_active) && self.prng.below(16) == 0 {
            self.reset();
        }
    }

    /// Makes a chain available, if the ring has room for one.
    fn offer(&mut self, queue: usize, request: &mut impl FnMut(&mut Prng) -> Vec<u8>) {
        if !self.driver.has_room(queue) {
            while_some(|| self.driver.take_used(queue), &mut self.used);
            return self.driver.kick(queue);
        }
        let size = self.driver.rings[queue].size;
        let bytes = request(&mut self.prng);
        let (length, at) = (bytes.len() as u32, self.slot());
        self.driver.set_bytes(at, &bytes);
        let split = self.prng.below(u64::from(length) + 1) as u32;
        let reply = writable(self.slot(), self.prng.below(8192) as u32);
        let chain = match self.prng.below(16) {
            0..6 => vec![readable(at, length), reply],
            6..8 => vec![
                readable(at, split),
                readable(at + u64::from(split), length - split),
                reply,
            ],
            8..10 => vec![reply],
            10..12 => vec![readable(at, split), self.prng.descriptor()],
            12..14 => {
                let chosen = self.prng.below(self.malformed.len() as u64) as usize;
                let chain = self.malformed[chosen].clone();
                return self.offer_raw(queue, &chain);
            }
            14 => {
                let chain: Vec<_> = (0..self.prng.below(6)).map(|_| self.prng.descriptor()).collect();
                return self.offer_raw(queue, &chain);
            }
            _ => return self.driver.make_available(queue, self.prng.small(size + 1)),
        };
        let head = self.prng.small(size / super::SLOT) * super::SLOT;
        self.driver.set_chain(queue, head, &chain);
        self.driver.make_available(queue, head);
    }

    fn offer_raw(&mut self, queue: usize, chain: &[super::Fields]) {
        self.driver.offer_raw(queue, chain);
    }

    fn slot(&mut self) -> u64 {
        BUFFERS + self.prng.below(SLOTS) * SLOT_BYTES
    }

    /// An offset near the start of the configuration space, or anywhere.
    fn offset(&mut self) -> u64 {
        if self.prng.below(8) == 0 {
            self.prng.next()
        } else {
            self.prng.below(64)
        }
    }

    fn read_config(&mut self) {
        let mut data = vec![0; self.prng.below(17) as usize];
        let offset = self.offset();
        self.device.config().read(offset, &mut data);
    }

    /// As the driver or as the device; most of these bytes can't be written.
    fn write_config(&mut self) {
        let data = self.prng.next().to_le_bytes();
        let data = &data[..self.prng.below(9) as usize];
        let offset = self.offset();
        let _ = match self.prng.below(4) {
            0 => self.device.config().update(offset, data),
            _ => self.device.config().write(offset, data),
        };
    }

    /// Resets the device, or activates it if it was reset.
    fn reset(&mut self) {
        if self.is_active {
            self.device.reset().unwrap();
            while self.driver.reports.try_recv().is_ok_and(|report| {
                assert!(matches!(report, Report::Stopped { .. }), "{report:?}");
                true
            }) {}
        }
        self.is_active = !self.is_active || self.prng.below(4) != 0;
        if self.is_active {
            self.driver.restart();
            let features = self.prng.next();
            self.device.activate(self.driver.activation(features)).unwrap();
        }
    }
}

/// Calls `next` until it returns None, and counts the calls that did not.
fn while_some<T>(mut next: impl FnMut() -> Option<T>, count: &mut u64) {
    while next().is_some() {
        *count += 1;
    }
}
