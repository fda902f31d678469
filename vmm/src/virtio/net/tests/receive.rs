//! Packets from the tap to the guest: into one chain or several, and when there are no buffers.

use super::*;

/// Bytes of each buffer of [`offer_buffers`].
const BUFFER: u32 = 1536;

/// Offers `count` buffers from [`BUFFERS`] on. Returns the heads in order.
fn offer_buffers(driver: &mut Driver, count: u64) -> Vec<u16> {
    let offer = |number| driver.offer(QUEUES.0, &[writable(BUFFERS + number * 4096, BUFFER)]);
    (0..count).map(offer).collect()
}

/// Reads a packet out of the chains `heads`, which were offered at the start, from the next used ones on.
fn take_packet(driver: &mut Driver, heads: &[u16]) -> Vec<u8> {
    let (mut packet, mut missing) = (Vec::new(), 1_u16);
    while missing > 0 {
        // All of them are visible at once.
        let (head, length) = if packet.is_empty() {
            driver.wait_used(QUEUES.0)
        } else {
            driver.take_used(QUEUES.0).unwrap()
        };
        let number = heads.iter().position(|other| *other == head).unwrap() as u64;
        let part = driver.bytes(BUFFERS + number * 4096, length as usize);
        if packet.is_empty() {
            missing = u16::from_le_bytes([part[10], part[11]]);
        }
        packet.extend(part);
        missing -= 1;
    }
    packet
}

/// `packet` as the driver gets it in `count` buffers.
fn with_count(mut packet: Vec<u8>, count: u16) -> Vec<u8> {
    packet[10..12].copy_from_slice(&count.to_le_bytes());
    packet
}

#[test]
fn large_packets_arrive_in_several_buffers() {
    for length in [0_usize, 1, 1524, 1525, 9000, LARGEST as usize - 12] {
        let (_device, mut driver, host) = activated();
        let heads = offer_buffers(&mut driver, 43);
        driver.kick(QUEUES.0);
        let sent = packet(length, 5);
        host.send(&sent);
        let count = sent.len().div_ceil(BUFFER as usize) as u16;
        assert_eq!(
            take_packet(&mut driver, &heads),
            with_count(sent, count),
            "{length}"
        );
    }
}

#[test]
fn packets_wait_in_the_tap_until_the_largest_one_has_room() {
    let (_device, mut driver, host) = activated();
    let mut heads = offer_buffers(&mut driver, 42);
    for number in 0..3 {
        host.send(&packet(100, number));
    }
    driver.kick(QUEUES.0);
    // The device has looked at both queues once a packet is sent.
    send(&mut driver, BUFFERS + (1 << 20), &packet(60, 0));
    assert!(driver.take_used(QUEUES.0).is_none());
    // The device asked for a notification of the next buffer.
    for number in 42..45 {
        heads.push(driver.offer(QUEUES.0, &[writable(BUFFERS + number * 4096, BUFFER)]));
    }
    driver.kick_if_wanted(QUEUES.0);
    for number in 0..3 {
        assert_eq!(
            take_packet(&mut driver, &heads),
            with_count(packet(100, number), 1)
        );
    }
}

#[test]
fn without_mergeable_buffers_a_packet_has_one_chain() {
    let (_device, mut driver, host) = activated_with(NOT_MERGEABLE & NOT_LARGE);
    for number in 0..4 {
        let at = BUFFERS + number * 0x1_0000;
        driver.offer(QUEUES.0, &[writable(at, 12), writable(at + 12, 1518)]);
    }
    driver.kick(QUEUES.0);
    for (number, length) in [(0, 1500), (1, 60)] {
        host.send(&packet(length, 7));
        assert_eq!(driver.wait_used(QUEUES.0).1 as usize, length + 12);
        let at = BUFFERS + number * 0x1_0000;
        assert_eq!(driver.bytes(at, length + 12), with_count(packet(length, 7), 1));
    }
}

#[test]
fn a_burst_raises_few_interrupts() {
    let (_device, mut driver, host) = activated_with(NOT_LARGE);
    for number in 0..60 {
        driver.offer(QUEUES.0, &[writable(BUFFERS + number * 4096, BUFFER)]);
    }
    // Nobody looks before all packets are there.
    for _ in 0..60 {
        host.send(&packet(100, 0));
    }
    driver.kick(QUEUES.0);
    for _ in 0..60 {
        driver.wait_used(QUEUES.0);
    }
    let interrupts = driver.interrupts.signals().queues[QUEUES.0];
    assert!(interrupts <= 60, "{interrupts} interrupts");
}
