//! A device that is paused in the middle of traffic loses no packet.

use super::*;

#[test]
fn packets_wait_while_the_device_is_paused() {
    let (mut device, mut driver, host) = activated_with(NOT_LARGE);
    let mut received = 0_u32;
    for round in 0..40_u32 {
        for number in 0..8 {
            driver.offer(QUEUES.0, &[writable(BUFFERS + number * 4096, 2048)]);
        }
        driver.kick_if_wanted(QUEUES.0);
        let states = device.pause().unwrap();
        let next_used = states[QUEUES.0].next_used;
        for number in 0..8 {
            host.send(&packet(60, (round * 8 + number) as u8));
        }
        driver.kick(QUEUES.0);
        assert_eq!(device.pause().unwrap()[QUEUES.0].next_used, next_used);
        device.resume().unwrap();
        for _ in 0..8 {
            assert_eq!(driver.wait_used(QUEUES.0).1, 72);
            received += 1;
        }
    }
    assert_eq!(received, 320);
}

#[test]
fn the_state_of_a_paused_queue_has_no_chain_taken() {
    let (mut device, mut driver, host) = activated();
    for number in 0..50 {
        driver.offer(QUEUES.0, &[writable(BUFFERS + number * 4096, 2048)]);
    }
    host.send(&packet(60, 1));
    driver.kick(QUEUES.0);
    assert_eq!(driver.wait_used(QUEUES.0).1, 72);
    let state = device.pause().unwrap()[QUEUES.0];
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    device.resume().unwrap();
    host.send(&packet(61, 1));
    assert_eq!(driver.wait_used(QUEUES.0).1, 73);
}
