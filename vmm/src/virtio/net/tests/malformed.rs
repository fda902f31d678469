//! Chains that violate the specification, in both queues.

use super::*;
use crate::virtio::testing::{NEXT, WRITE, malformed_chains};

#[test]
fn malformed_packets_of_the_guest_are_dropped() {
    for (name, chain) in malformed_chains() {
        let (mut device, mut driver, host) = activated();
        driver.offer_raw(QUEUES.1, &chain);
        driver.kick(QUEUES.1);
        driver.wait_used_or_reset(QUEUES.1);
        while host.receive().is_some() {}
        driver.reactivate(&mut device);
        let sent = packet(60, 1);
        send(&mut driver, BUFFERS, &sent);
        assert_eq!(host.receive().unwrap(), sent, "{name}");
    }
}

#[test]
fn packets_without_data_and_too_long_ones_never_reach_the_tap() {
    let (_device, mut driver, host) = activated();
    for chain in [
        vec![readable(BUFFERS, 1)],
        vec![readable(BUFFERS, HEADER_BYTES)],
        vec![readable(BUFFERS, LARGEST + 1)],
        vec![readable(BUFFERS, 60_000), readable(BUFFERS, 60_000)],
        vec![readable(BUFFERS, 100), writable(BUFFERS, 100)],
        vec![readable(MEMORY_SIZE - 8, 64)],
    ] {
        driver.offer(QUEUES.1, &chain);
        driver.kick(QUEUES.1);
        assert_eq!(driver.wait_used(QUEUES.1).1, 0);
        assert!(host.receive().is_none(), "{chain:?}");
    }
}

#[test]
fn malformed_receive_buffers_are_used_without_a_packet() {
    for (name, chain) in malformed_chains() {
        let (mut device, mut driver, host) = activated_with(NOT_LARGE);
        driver.offer_raw(QUEUES.0, &chain);
        driver.offer(QUEUES.0, &[writable(BUFFERS + 0x1_0000, 2048)]);
        host.send(&packet(100, 1));
        driver.kick(QUEUES.0);
        driver.wait_used_or_reset(QUEUES.0);
        device.reset().unwrap();
        driver.restart();
        device
            .activate(driver.activation(device.features() & NOT_LARGE))
            .unwrap();
        // The new driver gets no packet from before it started, which it has by now.
        send(&mut driver, BUFFERS, &packet(60, 0));
        host.send(&packet(100, 2));
        driver.offer(QUEUES.0, &[writable(BUFFERS, 2048)]);
        driver.kick(QUEUES.0);
        assert_eq!(driver.wait_used(QUEUES.0).1, 112, "{name}");
    }
}

#[test]
fn a_queue_full_of_malformed_buffers_does_not_stop_the_next_packet() {
    let (_device, mut driver, host) = activated_with(NOT_LARGE);
    for slot in 0..64_u16 {
        driver.set_descriptor(QUEUES.0, slot * 4, (MEMORY_SIZE, 64, WRITE, 0));
        driver.make_available(QUEUES.0, slot * 4);
    }
    driver.set_descriptor(QUEUES.0, 1, (BUFFERS, 4, WRITE | NEXT, 2));
    driver.set_descriptor(QUEUES.0, 2, (BUFFERS + 0x1000, 7, WRITE | NEXT, 3));
    driver.set_descriptor(QUEUES.0, 3, (BUFFERS + 0x2000, 2048, WRITE, 0));
    driver.make_available(QUEUES.0, 1);
    host.send(&packet(100, 3));
    driver.kick(QUEUES.0);
    for _ in 0..64 {
        assert_eq!(driver.wait_used(QUEUES.0).1, 0);
    }
    assert_eq!(driver.wait_used(QUEUES.0), (1, 112));
    // num_buffers is where the framing puts it.
    assert_eq!(driver.bytes(BUFFERS + 0x1006, 1), [1]);
    assert_eq!(driver.bytes(BUFFERS + 0x2001, 100), packet(100, 3)[12..]);
}
