//! The transport with in-memory guest RAM and a device whose worker serves no queue.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::jail::Confinement;
use crate::jail::calls::rng;
use crate::virtio::testing::DEADLINE;
use crate::virtio::worker::{ActiveDevice, DataPath, Fault};
use crate::virtio::{Env, Interrupt, Report, Spec};
use virtio_queue::QueueState;

const FEATURES: u64 = VERSION_1 | 1 << 29 | 1 << 28 | 1;
const MEMORY: u64 = 1 << 20;

/// Blocks in `stop` until the test drops the sender.
struct TestDataPath(Receiver<()>);

impl DataPath for TestDataPath {
    fn on_queue(&mut self, _index: u16, _active: &mut ActiveDevice) -> Result<(), Fault> {
        panic!("asked to panic")
    }

    fn stop(&mut self, _active: &mut ActiveDevice) {
        // Fails once the sender is dropped.
        let _ = self.0.recv();
    }
}

fn device(may_stop: Receiver<()>, reports: Sender<Report>) -> Device {
    let spec = Spec {
        name: "test",
        device_type: 4,
        queue_sizes: vec![8, 16],
        features: 1,
        config: (0..8).collect(),
        config_writable: 4..8,
        profile: &rng::PROFILE,
    };
    let env = Env {
        confinement: Confinement::none(),
        report: Arc::new(move |report| drop(reports.send(report))),
    };
    Device::spawn(spec, &env, || Ok(TestDataPath(may_stop))).unwrap()
}

struct Driver {
    /// Dropped to let the data path stop, so before the device.
    may_stop: Option<Sender<()>>,
    transport: MmioTransport,
    reports: Receiver<Report>,
    irqfd: EventFd,
    ioeventfds: Vec<EventFd>,
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

impl Driver {
    fn new() -> Self {
        let (may_stop, stops) = channel();
        let (reporter, reports) = channel();
        let memory = Arc::new(crate::machine::memory::allocate(MEMORY).unwrap());
        let (irqfd, ioeventfds) = (event(), vec![event(), event()]);
        let notifiers = KvmNotifiers {
            irqfd: irqfd.try_clone().unwrap(),
            ioeventfds: ioeventfds
                .iter()
                .map(|event| event.try_clone().unwrap())
                .collect(),
        };
        let transport = MmioTransport::new(device(stops, reporter), memory, notifiers);
        Self {
            may_stop: Some(may_stop),
            transport,
            reports,
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

    /// The queues that the device has; none if it is not active.
    fn active_queues(&mut self) -> Vec<QueueState> {
        let queues = self.transport.device.pause().unwrap();
        self.transport.device.resume().unwrap();
        queues
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.transport.interrupt) as Arc<_>
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
    for (half, features) in [(0, 1 | 1 << 28 | 1 << 29), (1, 1), (2, 0)] {
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
    let queues: Vec<_> = driver
        .active_queues()
        .iter()
        .map(|queue| (queue.size, queue.desc_table, queue.used_ring, queue.ready))
        .collect();
    assert_eq!(queues, [(8, 0x1000, 0x3000, true), (4, 0x4000, 0x6000, true)]);
}

#[test]
fn unoffered_features_and_legacy_drivers_never_get_features_ok() {
    for features in [FEATURES | 2, FEATURES & !VERSION_1, FEATURES | 1 << 60] {
        let mut driver = Driver::new();
        driver.negotiate(features);
        assert_eq!(driver.read(0x70), 3, "{features:#x}");
    }
    let mut driver = Driver::new();
    driver.negotiate(FEATURES & !(1 << 29));
    driver.accept(FEATURES);
    driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
    driver.write(0x70, 15);
    assert!(
        !driver.active_queues()[0].event_idx_enabled,
        "features are fixed by FEATURES_OK"
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
        assert!(driver.active_queues().is_empty(), "{what}");
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
    let ready: Vec<bool> = driver.active_queues().iter().map(|queue| queue.ready).collect();
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
    driver.interrupt().signal_queue(0);
    driver.may_stop = None;
    driver.write(0x70, 0);
    assert!(driver.active_queues().is_empty());
    assert_eq!(
        (driver.read(0x70), driver.read(0x60), driver.read(0x44)),
        (0, 0, 0)
    );
    driver.activate();
    assert_eq!(driver.read(0x70), 15);
    assert_eq!(driver.active_queues().len(), 2);
}

#[test]
fn a_device_that_is_not_active_resets_without_its_worker() {
    let mut driver = Driver::new();
    driver.transport.device.set_timeout(Duration::ZERO);
    driver.write(0x70, 0);
    driver.negotiate(FEATURES);
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 0);
}

#[test]
fn a_device_whose_worker_does_not_stop_is_not_activated_again() {
    let mut driver = Driver::new();
    driver.activate();
    driver.transport.device.set_timeout(Duration::from_millis(20));
    driver.write(0x70, 0);
    assert!(driver.needs_reset());
    driver.activate();
    driver.may_stop = None;
    driver.transport.device.set_timeout(Duration::from_secs(10));
    assert!(
        driver.active_queues().is_empty(),
        "activated although its queues were in use"
    );
}

#[test]
fn a_device_that_fails_to_activate_needs_a_reset() {
    let mut driver = Driver::new();
    driver.activate();
    driver.write(0x50, 0);
    assert!(matches!(
        driver.reports.recv_timeout(DEADLINE),
        Ok(Report::Died { .. })
    ));
    driver.write(0x70, 0);
    assert!(driver.needs_reset());
    driver.transport.interrupt.reset();
    driver.transport.status = 0;
    driver.activate();
    assert!(driver.needs_reset());
}

#[test]
fn interrupt_reasons_stay_until_they_are_acknowledged() {
    let mut driver = Driver::new();
    driver.activate();
    let interrupt = driver.interrupt();
    assert_eq!(driver.read(0xfc), 0);
    interrupt.signal_queue(1);
    driver.transport.device.config().update(0, &[1]).unwrap();
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
    assert_eq!(driver.read(0x70), 0);
}

#[test]
fn the_configuration_space_is_accessed_in_any_width() {
    let mut driver = Driver::new();
    let mut data = [0xee; 3];
    driver.transport.read(0x106, &mut data);
    assert_eq!(data, [6, 7, 0]);
    driver.transport.write(0x104, &[0xaa; 2]);
    driver.transport.write(0x103, &[0xbb; 2]);
    assert_eq!(driver.read(0x100), u32::from_le_bytes([0, 1, 2, 3]));
    assert_eq!(driver.read(0x104), u32::from_le_bytes([0xaa, 0xaa, 6, 7]));
}
