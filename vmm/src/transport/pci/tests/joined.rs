//! Transport, worker and a real device joined on in-memory guest memory: what the transport enables, the
//! worker serves.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vm_memory::{Bytes as _, GuestAddress};

use super::driver::{Driver, MEMORY};
use crate::jail::Confinement;
use crate::transport::pci::VERSION_1;
use crate::virtio::testing::DEADLINE;
use crate::virtio::{Env, rng};

const SIZE: u16 = 8;
const BUFFER: u64 = 0x8_0000;

/// Gives the rng device a queue with `rings` and one request. True if it is served, false if the queue can't
/// be enabled; panics if anything else happens.
fn serves(rings: [u64; 3]) -> bool {
    let (reporter, reports) = channel();
    let env = Env {
        confinement: Confinement::none(),
        report: Arc::new(move |report| drop(reporter.send(report))),
        hotplug: crate::virtio::testing::HOTPLUG,
    };
    let mut driver = Driver::of(rng::spawn(&env).unwrap(), reports);
    driver.negotiate(VERSION_1);
    driver.set_vector(1, 0xfee0_0000, 42, false);
    driver.write_config(0x43, &[0x80]);
    driver.set_up_queue(0, SIZE, rings);
    driver.write16(26, 1);
    let enabled = driver.read16(28) == 1;
    assert_eq!(driver.needs_reset(), !enabled);
    if !enabled {
        return false;
    }
    let [descriptors, available, used] = rings;
    let write = |address: u64, value: u16| driver.memory.write_obj(value, GuestAddress(address)).unwrap();
    driver
        .memory
        .write_obj(BUFFER, GuestAddress(descriptors))
        .unwrap();
    driver
        .memory
        .write_obj(16u32, GuestAddress(descriptors + 8))
        .unwrap();
    // VIRTQ_DESC_F_WRITE
    write(descriptors + 12, 2);
    write(available + 4, 0);
    write(available + 2, 1);
    driver.set_status(15);
    driver.ioeventfds[0].write(1).unwrap();
    let message = driver.messages.recv_timeout(DEADLINE).expect("an interrupt");
    assert_eq!(message.data, 42);
    let used_index: u16 = driver.memory.read_obj(GuestAddress(used + 2)).unwrap();
    assert_eq!(used_index, 1);
    assert!(
        driver.reports.try_recv().is_err(),
        "the worker has refused the queue"
    );
    assert_eq!(driver.status(), 15);
    true
}

#[test]
fn every_ring_that_the_transport_enables_is_served_by_the_worker() {
    let size = u64::from(SIZE);
    let lengths = [16 * size, 6 + 2 * size, 6 + 8 * size];
    let alignments = [16, 2, 4];
    for ring in 0..3 {
        let last = (MEMORY - lengths[ring]) / alignments[ring] * alignments[ring];
        for (address, expected) in [
            (last - alignments[ring], true),
            (last, true),
            (last + alignments[ring], false),
            (last - 1, false),
            (MEMORY - alignments[ring], false),
            (MEMORY, false),
            (MEMORY + alignments[ring], false),
            ((u64::MAX - lengths[ring] - 15) & !15, false),
            (!15, false),
        ] {
            let mut rings = [0x1000, 0x2000, 0x3000];
            rings[ring] = address;
            assert_eq!(serves(rings), expected, "ring {ring} at {address:#x}");
        }
    }
    assert!(serves([0, 0x100, 0x200]), "at the start of memory");
}
