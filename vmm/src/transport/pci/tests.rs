//! The transport with in-memory guest RAM and a device whose worker serves no queue. Each read goes through
//! the bus's interface and must agree with the page that the guest reads.

mod config_space;
mod interrupts;
mod joined;
mod random;
mod saved;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::channel;
use std::time::Duration;

use self::driver::{BAR1, Driver, FEATURES, MEMORY, STATUS};
use super::VERSION_1;
use super::config_space::ISR;
use super::testing as driver;
use crate::virtio::testing::DEADLINE;
use crate::virtio::{Interrupt as _, Report};

#[test]
fn the_common_registers_describe_the_device() {
    let mut driver = Driver::new();
    for (half, features) in [(0, 1 | 1 << 28 | 1 << 29), (1, 1), (2, 0), (u32::MAX, 0)] {
        driver.write32(0, half);
        assert_eq!((driver.read32(0), driver.read32(4)), (half, features));
    }
    assert_eq!(driver.read16(18), 2, "queues");
    for (queue, size, notify_offset) in [(0, 8, 0), (1, 16, 1), (2, 0, 0), (0xffff, 0, 0)] {
        driver.write16(22, queue);
        let registers = (driver.read16(24), driver.read16(30));
        assert_eq!(registers, (size, notify_offset), "queue {queue}");
    }
    assert_eq!(driver.read32(56), 0, "queue_notify_data and queue_reset");
}

#[test]
fn the_drivers_registers_read_back() {
    let mut driver = Driver::new();
    driver.write32(8, 1);
    driver.write32(12, 0xabcd);
    assert_eq!((driver.read32(8), driver.read32(12)), (1, 0xabcd));
    driver.write32(8, 0);
    assert_eq!(driver.read32(12), 0);
    driver.write16(22, 1);
    driver.write16(24, 4);
    for (offset, value) in [(32, 1), (36, 2), (40, 3), (44, 4), (48, 5), (52, 6)] {
        driver.write32(offset, value);
        assert_eq!(driver.read32(offset), value);
    }
    assert_eq!(driver.read16(24), 4);
    driver.write16(22, 0);
    assert_eq!((driver.read16(24), driver.read32(32)), (8, 0), "the other queue");
}

#[test]
fn a_valid_driver_activates_the_device_once_with_its_queues() {
    let mut driver = Driver::new();
    driver.activate();
    driver.set_status(15);
    assert_eq!(driver.status(), 15);
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
        assert_eq!(driver.status(), 3, "{features:#x}");
    }
    let mut driver = Driver::new();
    driver.negotiate(FEATURES & !(1 << 29));
    driver.accept(FEATURES);
    driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
    driver.set_status(15);
    assert!(
        !driver.active_queues()[0].event_idx_enabled,
        "features are fixed by FEATURES_OK"
    );
}

#[test]
fn queues_of_invalid_size_or_outside_of_memory_are_never_enabled() {
    let end = MEMORY;
    for (what, size, rings) in [
        ("size 0", 0, [0x1000, 0x2000, 0x3000]),
        ("not a power of two", 7, [0x1000, 0x2000, 0x3000]),
        ("too large", 16, [0x1000, 0x2000, 0x3000]),
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
        assert_eq!(driver.read16(28), 0, "{what}");
        assert!(driver.needs_reset(), "{what}");
        driver.set_status(15);
        assert!(driver.active_queues().is_empty(), "{what}");
    }
}

#[test]
fn a_queue_that_the_driver_skips_is_passed_as_not_ready() {
    let mut driver = Driver::new();
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
    driver.set_status(15);
    let ready: Vec<bool> = driver.active_queues().iter().map(|queue| queue.ready).collect();
    assert_eq!(ready, [true, false]);
}

#[test]
fn queues_of_an_active_device_can_not_be_changed() {
    let mut driver = Driver::new();
    driver.activate();
    driver.set_up_queue(0, 4, [0x8000, 0x9000, 0xa000]);
    driver.write16(28, 0);
    let registers = (driver.read16(24), driver.read32(32), driver.read16(28));
    assert_eq!(registers, (8, 0x1000, 1));
    driver.write16(22, 99);
    driver.write16(28, 1);
    driver.write16(24, 8);
    assert_eq!(driver.status(), 15);
}

#[test]
fn only_a_reset_disables_a_queue() {
    let mut driver = Driver::new();
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
    for value in [0, 2, 0xffff] {
        driver.write16(28, value);
        assert_eq!(driver.read16(28), 1, "{value}");
    }
    driver.set_status(0);
    assert_eq!(driver.read16(28), 0);
}

#[test]
fn reset_stops_the_device_and_clears_all_state() {
    let mut driver = Driver::new();
    driver.activate();
    driver.write16(16, 0);
    driver.write16(26, 1);
    driver.function.signal_config();
    driver.may_stop = None;
    driver.set_status(0);
    assert!(driver.active_queues().is_empty());
    assert_eq!(driver.common(), Driver::new().common());
    assert_eq!(driver.read_isr(), 0);
    driver.activate();
    assert_eq!(driver.status(), 15);
    assert_eq!(driver.active_queues().len(), 2);
}

#[test]
fn a_device_that_is_not_active_resets_without_its_worker() {
    let mut driver = Driver::new();
    driver.transport().device.set_timeout(Duration::ZERO);
    driver.set_status(0);
    driver.negotiate(FEATURES);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_device_whose_worker_does_not_stop_is_not_activated_again() {
    let mut driver = Driver::new();
    driver.activate();
    driver.transport().device.set_timeout(Duration::from_millis(20));
    driver.set_status(0);
    assert!(driver.needs_reset());
    driver.activate();
    driver.may_stop = None;
    driver.transport().device.set_timeout(Duration::from_secs(10));
    assert!(
        driver.active_queues().is_empty(),
        "activated although its queues were in use"
    );
}

#[test]
fn a_device_that_fails_to_activate_needs_a_reset() {
    let mut driver = Driver::new();
    driver.activate();
    driver.write(BAR1, 0, &[0, 0]);
    assert!(matches!(
        driver.reports.recv_timeout(DEADLINE),
        Ok(Report::Died { .. })
    ));
    driver.set_status(0);
    assert!(driver.needs_reset());
    driver.transport().status = 0;
    let registers = driver.transport().registers();
    driver.function.reset(registers);
    driver.activate();
    assert!(driver.needs_reset());
}

#[test]
fn the_configuration_is_read_and_written_in_any_width_and_changes_are_shown() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(0, 0x106, 3), [6, 7, 0]);
    driver.write(0, 0x104, &[0xaa; 2]);
    driver.write(0, 0x103, &[0xbb; 2]);
    assert_eq!(driver.read(0, 0x100, 8), [0, 1, 2, 3, 0xaa, 0xaa, 6, 7]);
    assert_eq!(driver.read8(21), 0);
    driver.transport().device.config().update(0, &[9]).unwrap();
    assert_eq!(
        (driver.read8(21), driver.read8(0x100)),
        (2, 9),
        "before DRIVER_OK"
    );
    driver.activate();
    driver.transport().device.config().update(1, &[8]).unwrap();
    assert_eq!((driver.read8(21), driver.read8(0x101)), (4, 8));
    assert_eq!(driver.read_isr(), 2);
}

#[test]
fn a_driver_that_reads_the_configuration_while_it_changes_sees_another_generation() {
    const ROUNDS: u32 = 300;
    /// Fewer than after which config_generation, a byte, repeats.
    const CHANGES: u8 = 126;
    let driver = Driver::new();
    let function = Arc::clone(&driver.function);
    let (start, started) = channel();
    let (finish, finished) = channel();
    let device = std::thread::spawn(move || {
        while started.recv().is_ok() {
            for change in 1..=CHANGES {
                function.show_device_config(&[change; 256], change.into());
            }
            finish.send(()).unwrap();
        }
    });
    let bar0 = driver.pages.bar0;
    let generation = || {
        let mut byte = [0];
        fence(Ordering::SeqCst);
        bar0.load(21, &mut byte);
        fence(Ordering::SeqCst);
        byte[0]
    };
    let mut data = [0; 256];
    for _ in 0..ROUNDS {
        driver.function.show_device_config(&[0; 256], 0);
        start.send(()).unwrap();
        while finished.try_recv().is_err() {
            let before = generation();
            bar0.load(0x100, &mut data);
            // If it is odd, a change is under way, and may last until all is read.
            if before.is_multiple_of(2) && before == generation() {
                assert_eq!(data, [before / 2; 256], "generation {before}");
            }
        }
    }
    drop(start);
    device.join().unwrap();
}

#[test]
fn notifications_without_an_ioeventfd_write_the_same_eventfd() {
    let mut driver = Driver::new();
    for offset in [4, 2, 8, 0xffc, u64::from(ISR)] {
        for length in [1, 2, 4, 8] {
            driver.write(BAR1, offset, &vec![0; length]);
        }
    }
    assert_eq!(driver.ioeventfds[1].read().unwrap(), 4, "whatever is written");
    assert!(driver.ioeventfds[0].read().is_err());
}

#[test]
fn writes_of_another_width_or_to_other_offsets_change_nothing() {
    let registers = [
        (0, 4),
        (8, 4),
        (12, 4),
        (16, 2),
        (20, 1),
        (22, 2),
        (24, 2),
        (26, 2),
        (28, 2),
        (32, 4),
        (36, 4),
        (40, 4),
        (44, 4),
        (48, 4),
        (52, 4),
    ];
    let mut driver = Driver::new();
    let before = driver.common();
    for offset in 0..64 {
        for length in [1, 2, 3, 4, 8] {
            if !registers.contains(&(offset, length)) {
                driver.write(0, offset, &vec![0xff; length]);
                assert_eq!(driver.common(), before, "{length} bytes at {offset}");
            }
        }
    }
}

#[test]
fn invalid_statuses_are_refused() {
    let mut driver = Driver::new();
    for status in [2, 4, 8, 16, 255] {
        driver.write(0, STATUS, &[status]);
        assert_eq!(driver.status(), 0, "{status}");
    }
    driver.set_status(1);
    driver.set_status(0x81);
    assert_eq!(driver.status(), 0x81, "FAILED");
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}
