//! A device with two queue pairs: which of them carry packets, and the control queue.

use super::*;

const SIZES: [u16; 5] = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE];
const CONTROL: usize = 4;
const NOT_MANY: u64 = !(1 << bits::VIRTIO_NET_F_MQ);

/// A device with two pairs, its driver, and the hosts' sides of its taps.
fn activated_pairs(mask: u64) -> (Device, Driver, [Host; 2]) {
    activated_pairs_with(mask, u32::MAX)
}

/// The same; the driver may cause `max_changes`.
fn activated_pairs_with(mask: u64, max_changes: u32) -> (Device, Driver, [Host; 2]) {
    let (mut first, host_a) = config();
    first.max_changes = max_changes;
    let (second, host_b) = config();
    first.taps.extend(second.taps);
    let driver = Driver::new(&SIZES);
    let mut device = spawn(first, &driver.env()).unwrap();
    device
        .activate(driver.activation(device.features() & mask))
        .unwrap();
    (device, driver, [host_a, host_b])
}

/// Sends a command in a chain of these parts to `queue`; returns the answer.
fn command(driver: &mut Driver, queue: usize, parts: &[&[u8]]) -> u8 {
    let mut chain = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let at = BUFFERS + index as u64 * 64;
        driver.set_bytes(at, part);
        chain.push(readable(at, part.len() as u32));
    }
    driver.set_bytes(BUFFERS + 512, &[9]);
    chain.push(writable(BUFFERS + 512, 1));
    driver.offer(queue, &chain);
    driver.kick(queue);
    assert_eq!(driver.wait_used(queue).1, 1);
    driver.bytes(BUFFERS + 512, 1)[0]
}

/// Sends a packet each way over pair `index`.
fn passes(driver: &mut Driver, host: &Host, index: usize) {
    let (rx, tx) = (2 * index, 2 * index + 1);
    let sent = packet(60, 1);
    driver.set_bytes(BUFFERS, &sent);
    driver.offer(tx, &[readable(BUFFERS, 72)]);
    driver.kick(tx);
    driver.wait_used(tx);
    assert_eq!(host.receive().unwrap(), sent);
    host.send(&packet(100, 2));
    driver.offer(rx, &[writable(BUFFERS, 2048)]);
    driver.kick(rx);
    assert_eq!(driver.wait_used(rx).1, 112);
}

#[test]
fn the_second_pair_carries_packets_once_the_driver_asks_for_it() {
    let (device, mut driver, hosts) = activated_pairs(NOT_LARGE);
    let mut pairs = [0; 2];
    device.config().read(8, &mut pairs);
    assert_eq!(pairs, [2, 0]);
    passes(&mut driver, &hosts[0], 0);
    for _ in 0..3 {
        assert_eq!(command(&mut driver, CONTROL, &[&[4, 0], &[2, 0]]), 0);
        passes(&mut driver, &hosts[1], 1);
        passes(&mut driver, &hosts[0], 0);
        assert_eq!(command(&mut driver, CONTROL, &[&[4, 0, 1, 0]]), 0);
        passes(&mut driver, &hosts[0], 0);
    }
}

#[test]
fn a_driver_that_has_changed_too_much_keeps_the_pairs_that_it_has() {
    // The start detaches the second queue and sets the offloads.
    let (_device, mut driver, hosts) = activated_pairs_with(NOT_LARGE, 5);
    for (pairs, answer) in [(2, 0), (2, 0), (1, 0), (2, 0), (1, 1), (2, 0)] {
        assert_eq!(command(&mut driver, CONTROL, &[&[4, 0], &[pairs, 0]]), answer);
    }
    passes(&mut driver, &hosts[1], 1);
}

#[test]
fn commands_that_do_not_exist_are_refused() {
    let (_device, mut driver, hosts) = activated_pairs(NOT_LARGE);
    for parts in [
        &[&[4, 0][..], &[0, 0]][..],
        &[&[4, 0], &[3, 0]],
        &[&[4, 0], &[0xff, 0xff]],
        &[&[4, 1], &[1, 0]],
        &[&[0, 0], &[1, 0]],
        &[&[4, 0], &[1]],
        &[&[4, 0]],
        &[],
    ] {
        assert_eq!(command(&mut driver, CONTROL, parts), 1, "{parts:?}");
    }
    passes(&mut driver, &hosts[0], 0);
}

#[test]
fn without_the_feature_the_control_queue_follows_the_first_pair() {
    let (_device, mut driver, hosts) = activated_pairs(NOT_LARGE & NOT_MANY);
    // A second pair, which the device has, is refused as is a ninth.
    for pairs in [2, 9] {
        assert_eq!(command(&mut driver, 2, &[&[4, 0], &[pairs, 0]]), 1, "{pairs}");
    }
    passes(&mut driver, &hosts[0], 0);
}

#[test]
fn several_pairs_survive_random_operations() {
    if !is_confined("virtio::net::tests::pairs::several_pairs_survive_random_operations") {
        return;
    }
    let (mut device, mut driver, hosts) = activated_pairs(!0);
    hammer(&mut driver, &mut device, |prng| {
        for host in &hosts {
            while host.receive().is_some() {}
            let _ = rustix::io::write(&host.0, &packet(prng.below(9000) as usize, 0));
        }
        match prng.below(3) {
            0 => vec![4, 0, prng.below(4) as u8, 0],
            _ => packet(prng.below(2000) as usize, prng.next() as u8),
        }
    });
    hosts.iter().for_each(|host| while host.receive().is_some() {});
    device
        .activate(driver.activation(device.features() & NOT_LARGE))
        .unwrap();
    send(&mut driver, BUFFERS, &packet(60, 0));
    assert!(hosts[0].receive().is_some());
    passes(&mut driver, &hosts[0], 0);
}
