//! The state of a function in a snapshot: saved, loaded and saved again it is the same, and a driver can't
//! tell the restored function from the one that it has set up.
#![allow(clippy::cast_possible_truncation, reason = "random bytes")]

use super::driver::{BARS, Driver, FEATURES};
use crate::transport::pci::saved::{Error, TransportState};
use crate::virtio::Interrupt as _;
use crate::virtio::testing::Prng;
use crate::virtio::worker::{ActiveDevice, DataPath, Fault};

const ROUNDS: u32 = 300;

struct IdleDataPath;

impl DataPath for IdleDataPath {
    fn on_queue(&mut self, _index: u16, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
}

fn new() -> Driver {
    Driver::of_path(IdleDataPath)
}

/// One step of a driver, of whatever kind.
fn step(driver: &mut Driver, prng: &mut Prng) {
    let value = prng.next() as u32;
    match prng.below(12) {
        0 => driver.negotiate(FEATURES),
        1 => driver.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]),
        2 => driver.set_up_queue(1, 4, [0x4000, 0x5000, 0x6000]),
        3 => driver.set_status(15),
        4 => driver.enable_interrupts(),
        5 => driver.set_vector(
            u64::from(value % 3),
            u64::from(value) << 12,
            value,
            value & 1 == 0,
        ),
        6 => driver.function.signal_queue((value % 3) as u16),
        7 => driver.function.signal_config(),
        8 => driver.write_config(u64::from(value % 256), &value.to_le_bytes()),
        9 => driver.write(0, 0x104, &value.to_le_bytes()),
        10 => driver.write32(u64::from(value % 3) * 4, value % 3),
        _ if value.is_multiple_of(8) => driver.set_status(0),
        _ => driver.write16(22, (value % 3) as u16),
    }
}

fn save(driver: &Driver) -> TransportState {
    driver.transport().save().unwrap()
}

/// `state` as it comes out of a file.
fn loaded(state: &TransportState) -> TransportState {
    let bytes = postcard::to_stdvec(state).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

#[test]
fn a_state_that_was_saved_is_restored_and_saved_again() {
    let mut prng = Prng(1);
    let mut active = 0;
    for round in 0..ROUNDS {
        let mut driver = new();
        for _ in 0..prng.below(40) {
            step(&mut driver, &mut prng);
        }
        let saved = save(&driver);
        let mut restored = new();
        restored.transport().restore(&loaded(&saved)).unwrap();
        assert_eq!(save(&restored), saved, "round {round}");
        assert_eq!(restored.read_config(0, 256), driver.read_config(0, 256));
        driver.received();
        for driver in [&mut driver, &mut restored] {
            // Makes the function respond, and send what is pending.
            driver.write_config(0x10, &BARS[0].to_le_bytes());
            driver.write_config(4, &[6]);
            driver.write_config(0x43, &[0x80]);
        }
        assert_eq!(restored.bar0(), driver.bar0(), "round {round}");
        assert_eq!(restored.received(), driver.received(), "round {round}");
        active += u32::from(driver.status() == 15);
    }
    assert!(active > ROUNDS / 20, "{active} of {ROUNDS} devices were active");
}

#[test]
fn the_queues_continue_where_they_were() {
    let mut driver = new();
    driver.enable_interrupts();
    driver.activate();
    let mut saved = save(&driver);
    (saved.positions[0].next_avail, saved.positions[0].next_used) = (7, 5);
    let mut restored = new();
    restored.transport().restore(&saved).unwrap();
    let queues = restored.active_queues();
    let positions: Vec<(u16, u16)> = queues
        .iter()
        .map(|queue| (queue.next_avail, queue.next_used))
        .collect();
    assert_eq!(positions, [(7, 5), (0, 0)]);
    assert_eq!(
        (queues[0].desc_table, queues[1].used_ring),
        (0x1000, 0x6000),
        "the rings are where the driver has put them"
    );
    restored.function.signal_queue(1);
    assert_eq!(restored.received(), [2]);
}

#[test]
fn the_state_of_another_device_is_refused() {
    let mut driver = new();
    driver.activate();
    let saved = save(&driver);
    let other = |change: &dyn Fn(&mut TransportState)| {
        let mut changed = loaded(&saved);
        change(&mut changed);
        let error = new().transport().restore(&changed).unwrap_err();
        assert!(matches!(error, Error::OtherDevice { device: "test" }), "{error}");
    };
    other(&|state| state.device_type = 5);
    other(&|state| state.queues.truncate(1));
    other(&|state| state.config.0.push(0));
    // The vendor, which no driver can write.
    other(&|state| state.function.config[0] ^= 1);
    other(&|state| state.function.config.truncate(255));
    other(&|state| state.function.queue_vectors.truncate(1));
    other(&|state| state.function.vectors.truncate(1));
    let mut without = loaded(&saved);
    without.positions.truncate(1);
    let error = new().transport().restore(&without).unwrap_err();
    assert_eq!(error.to_string(), "virtio test: queue 1: no position");
}
