//! The transport with in-memory guest RAM and a test device that records the calls to it.

use std::sync::{Arc, Mutex};

use super::*;
use crate::virtio::{DeviceError, Interrupt};
use virtio_queue::QueueT as _;

const FEATURES: u64 = VERSION_1 | 1 << 29 | 1;
const MEMORY: u64 = 1 << 20;

#[derive(Default)]
struct Calls {
    activations: Vec<Activation>,
    resets: u32,
    refuse: bool,
    stuck: bool,
}

struct Device(Arc<Mutex<Calls>>);

impl VirtioDevice for Device {
    fn name(&self) -> &'static str {
        "test"
    }
    fn device_type(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap_or(0));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut calls = self.0.lock().unwrap();
        if calls.refuse {
            return Err(DeviceError {
                device: "test",
                reason: "no".to_owned(),
            });
        }
        calls.activations.push(activation);
        Ok(())
    }
    fn reset(&mut self) -> Result<(), DeviceError> {
        let mut calls = self.0.lock().unwrap();
        calls.resets += 1;
        if calls.stuck {
            return Err(DeviceError {
                device: "test",
                reason: "the worker does not answer".to_owned(),
            });
        }
        Ok(())
    }
}

struct Driver {
    transport: MmioTransport,
    calls: Arc<Mutex<Calls>>,
    irqfd: EventFd,
    ioeventfds: Vec<EventFd>,
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

impl Driver {
    fn new() -> Self {
        let calls = Arc::new(Mutex::new(Calls::default()));
        let memory = Arc::new(crate::machine::memory::allocate(MEMORY).unwrap());
        let (irqfd, ioeventfds) = (event(), vec![event(), event()]);
        let notifiers = KvmNotifiers {
            irqfd: irqfd.try_clone().unwrap(),
            ioeventfds: ioeventfds
                .iter()
                .map(|event| event.try_clone().unwrap())
                .collect(),
        };
        let transport = MmioTransport::new(Box::new(Device(Arc::clone(&calls))), memory, notifiers);
        Self {
            transport,
            calls,
            irqfd,
            ioeventfds,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut word = [0xee; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn accept(&mut self, features: u64) {
        for half in [0u32, 1] {
            self.write(0x24, half);
            self.write(
                0x20,
                u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap(),
            );
        }
    }

    /// Initializes the device up to FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.accept(features);
        self.write(0x70, 11);
    }

    fn set_up_queue(&mut self, queue: u32, size: u32, rings: [u64; 3]) {
        self.write(0x30, queue);
        self.write(0x38, size);
        for (offset, address) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write(offset, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(offset + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(0x44, 1);
    }

    fn activate(&mut self) {
        self.negotiate(FEATURES);
        self.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
        self.set_up_queue(1, 4, [0x4000, 0x5000, 0x6000]);
        self.write(0x70, 15);
    }

    fn needs_reset(&mut self) -> bool {
        self.read(0x70) & 0x40 != 0
    }
}

#[test]
fn the_identification_registers_describe_the_device() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!((driver.read(4), driver.read(8)), (2, 4));
    for (half, features) in [(0, 1 | 1 << 29), (1, 1), (2, 0)] {
        driver.write(0x14, half);
        assert_eq!(driver.read(0x10), features, "half {half}");
    }
    for (queue, size) in [(0, 8), (1, 16), (2, 0), (u32::MAX, 0)] {
        driver.write(0x30, queue);
        assert_eq!(driver.read(0x34), size, "queue {queue}");
    }
    driver.write(0xac, 0);
    assert_eq!(driver.read(0xb0), u32::MAX, "no shared memory");
}

#[test]
fn a_valid_driver_activates_the_device_once_with_its_queues() {
    let mut driver = Driver::new();
    driver.activate();
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 15);
    let calls = driver.calls.lock().unwrap();
    let [activation] = &calls.activations[..] else {
        panic!("{} activations", calls.activations.len())
    };
    assert_eq!(activation.features, FEATURES);
    let queues: Vec<_> = activation
        .queues
        .iter()
        .map(|active| {
            (
                active.index,
                active.queue.size(),
                active.queue.desc_table(),
                active.queue.used_ring(),
            )
        })
        .collect();
    assert_eq!(queues, [(0, 8, 0x1000, 0x3000), (1, 4, 0x4000, 0x6000)]);
}

#[test]
fn unoffered_features_and_legacy_drivers_never_get_features_ok() {
    for features in [FEATURES | 2, FEATURES & !VERSION_1, FEATURES | 1 << 60] {
        let mut driver = Driver::new();
        driver.negotiate(features);
        assert_eq!(driver.read(0x70), 3, "{features:#x}");
    }
    let mut driver = Driver::new();
    driver.negotiate(FEATURES);
    driver.accept(0);
    driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
    driver.set_up_queue(1, 8, [0x4000, 0x5000, 0x6000]);
    driver.write(0x70, 15);
    assert_eq!(
        driver.calls.lock().unwrap().activations[0].features,
        FEATURES,
        "fixed by FEATURES_OK"
    );
}

#[test]
fn queues_of_invalid_size_or_outside_of_memory_are_never_ready() {
    let end = MEMORY;
    for (what, size, rings) in [
        ("size 0", 0, [0x1000, 0x2000, 0x3000]),
        ("not a power of two", 7, [0x1000, 0x2000, 0x3000]),
        ("too large", 16, [0x1000, 0x2000, 0x3000]),
        ("size beyond 16 bits", 0x1_0008, [0x1000, 0x2000, 0x3000]),
        ("descriptors not aligned", 8, [0x1008, 0x2000, 0x3000]),
        ("available not aligned", 8, [0x1000, 0x2001, 0x3000]),
        ("used not aligned", 8, [0x1000, 0x2000, 0x3002]),
        ("descriptors over the end", 8, [end - 64, 0x2000, 0x3000]),
        ("available over the end", 8, [0x1000, end - 8, 0x3000]),
        ("used over the end", 8, [0x1000, 0x2000, end - 16]),
        ("far outside", 8, [!0xf, 0x2000, 0x3000]),
        ("wrapping", 8, [0x1000, 0x2000, u64::MAX - 3]),
    ] {
        let mut driver = Driver::new();
        driver.negotiate(FEATURES);
        driver.set_up_queue(0, size, rings);
        assert_eq!(driver.read(0x44), 0, "{what}");
        assert!(driver.needs_reset(), "{what}");
        driver.write(0x70, 15);
        assert!(driver.calls.lock().unwrap().activations.is_empty(), "{what}");
    }
}

#[test]
fn a_ring_may_end_at_the_last_byte_of_memory() {
    let mut driver = Driver::new();
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 8, [MEMORY - 8 * 16, 0x2000, 0x3000]);
    assert_eq!(driver.read(0x44), 1);
}

#[test]
fn a_queue_that_the_driver_skips_is_passed_as_not_ready() {
    let mut driver = Driver::new();
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
    driver.write(0x70, 15);
    let calls = driver.calls.lock().unwrap();
    let ready: Vec<bool> = calls.activations[0]
        .queues
        .iter()
        .map(|active| active.queue.ready())
        .collect();
    assert_eq!(ready, [true, false]);
}

#[test]
fn queues_of_an_active_device_can_not_be_changed() {
    let mut driver = Driver::new();
    driver.activate();
    driver.set_up_queue(0, 4, [0x8000, 0x9000, 0xa000]);
    driver.write(0x44, 0);
    assert_eq!(driver.read(0x44), 1);
    driver.write(0x30, 99);
    driver.write(0x44, 1);
    driver.write(0x38, 8);
    assert_eq!(driver.read(0x70), 15);
}

#[test]
fn reset_stops_the_device_and_clears_all_state() {
    let mut driver = Driver::new();
    driver.activate();
    let interrupt = Arc::clone(&driver.calls.lock().unwrap().activations[0].interrupt);
    interrupt.signal_queue(0);
    driver.write(0x70, 0);
    assert_eq!(driver.calls.lock().unwrap().resets, 1);
    assert_eq!(
        (driver.read(0x70), driver.read(0x60), driver.read(0x44)),
        (0, 0, 0)
    );
    driver.activate();
    assert_eq!(driver.read(0x70), 15);
    assert_eq!(driver.calls.lock().unwrap().activations.len(), 2);
}

#[test]
fn a_device_that_is_not_active_is_not_reset() {
    let mut driver = Driver::new();
    driver.write(0x70, 0);
    driver.negotiate(FEATURES);
    driver.write(0x70, 0);
    assert_eq!(driver.calls.lock().unwrap().resets, 0);
}

#[test]
fn a_device_whose_worker_does_not_stop_is_not_activated_again() {
    let mut driver = Driver::new();
    driver.activate();
    driver.calls.lock().unwrap().stuck = true;
    driver.write(0x70, 0);
    assert!(driver.needs_reset());
    driver.activate();
    assert_eq!(
        driver.calls.lock().unwrap().activations.len(),
        1,
        "its queues are still in use"
    );
}

#[test]
fn a_device_that_fails_to_activate_needs_a_reset() {
    let mut driver = Driver::new();
    driver.calls.lock().unwrap().refuse = true;
    driver.activate();
    assert!(driver.needs_reset());
}

#[test]
fn interrupt_reasons_stay_until_they_are_acknowledged() {
    let mut driver = Driver::new();
    driver.activate();
    let interrupt: Arc<dyn Interrupt> = Arc::clone(&driver.calls.lock().unwrap().activations[0].interrupt);
    assert_eq!(driver.read(0xfc), 0);
    interrupt.signal_queue(1);
    interrupt.signal_config();
    assert_eq!(driver.irqfd.read().unwrap(), 2);
    assert_eq!((driver.read(0x60), driver.read(0xfc)), (3, 1));
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 2);
    driver.write(0x64, u32::MAX);
    assert_eq!(driver.read(0x60), 0);
    interrupt.signal_needs_reset();
    assert!(driver.needs_reset());
    assert_eq!(driver.read(0x60), 2);
}

#[test]
fn notifications_without_an_ioeventfd_write_the_same_eventfd() {
    let mut driver = Driver::new();
    driver.write(0x50, 1);
    driver.write(0x50, 2);
    driver.write(0x50, u32::MAX);
    assert_eq!(driver.ioeventfds[1].read().unwrap(), 1);
    assert!(driver.ioeventfds[0].read().is_err());
}

#[test]
fn invalid_accesses_read_as_zero_and_change_nothing() {
    let mut driver = Driver::new();
    for (offset, length) in [(0, 1), (0, 2), (0, 8), (2, 4), (0x14, 4), (0x48, 4), (0xff, 1)] {
        let mut data = vec![0xee; length];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; length], "{offset:#x} {length}");
        driver.transport.write(offset, &data);
    }
    driver.transport.write(0x70, &[1]);
    driver.transport.write(0x100, &[1; 4]);
    assert_eq!(driver.read(0x70), 0);
    let mut data = [0; 3];
    driver.transport.read(0x107, &mut data);
    assert_eq!(data, [7; 3], "configuration space may be read in any width");
}
