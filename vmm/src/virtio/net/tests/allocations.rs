//! Packets cost no allocation of the worker.

use super::*;

/// Bytes of each buffer of the receive queue.
const BUFFER: u32 = 4096;
/// Packets that are sent in one go.
const BURST: usize = 10;
/// Where packets of the transmit queue lie, behind the buffers of the receive queue.
const SENT: u64 = BUFFERS + (8 << 20);
/// Bytes from one packet of the transmit queue to the next.
const STRIDE: u64 = 128 << 10;

/// Offers receive buffers until there are 48, of which the largest packet takes 17.
fn refill(driver: &mut Driver, offered: &mut u64) {
    while *offered < 48 {
        let at = BUFFERS + *offered * u64::from(BUFFER);
        driver.offer(QUEUES.0, &[writable(at, BUFFER)]);
        *offered += 1;
    }
    driver.kick(QUEUES.0);
}

/// Moves `bursts` of packets each way, of 60 bytes to 64 KiB; `offered` are the receive buffers that the device has.
/// Returns the worker's allocations up to the end.
fn exchange(driver: &mut Driver, host: &Host, offered: &mut u64, bursts: usize) -> u64 {
    let lengths = [60, 1500, 9000, 300, 30_000, 1000, 65_000, 100, 4000, 61];
    for number in 0..bursts {
        let packets: [Vec<u8>; BURST] = lengths.map(|length| packet(length, number as u8));
        for (packet, at) in packets.iter().zip((SENT..).step_by(STRIDE as usize)) {
            driver.set_bytes(at, packet);
            let half = packet.len() as u32 / 2;
            let second = readable(at + u64::from(half), packet.len() as u32 - half);
            driver.offer(QUEUES.1, &[readable(at, half), second]);
        }
        driver.kick(QUEUES.1);
        for packet in &packets {
            driver.wait_used(QUEUES.1);
            assert_eq!(host.receive().as_ref(), Some(packet));
        }
        for packet in packets {
            refill(driver, offered);
            host.send(&packet);
            let mut left = packet.len() as u32;
            while left > 0 {
                left -= driver.wait_used(QUEUES.0).1;
                *offered -= 1;
            }
        }
    }
    driver.interrupts.signals().allocations
}

#[test]
fn packets_are_moved_without_an_allocation() {
    let (_device, mut driver, host) = activated();
    let mut offered = 0;
    // The worker allocates its buffers when it starts.
    let before = exchange(&mut driver, &host, &mut offered, 10);
    assert!(before > 0, "the worker's allocations are not counted");
    let after = exchange(&mut driver, &host, &mut offered, 100);
    assert_eq!(after - before, 0, "allocations for 1,000 packets each way");
}
