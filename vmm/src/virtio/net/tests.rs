//! The device on in-memory guest memory, with a socket that keeps message boundaries in the place of a tap.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a test guest are small")]

mod allocations;
mod malformed;
mod pairs;
mod pause;
mod receive;

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use vm_memory::{GuestAddress, GuestRegionMmap};

use super::tap::HEADER_BYTES;
use super::transmit::LARGEST;
use super::*;
use crate::virtio::testing::{
    BUFFERS, Driver, MEMORY_SIZE, assert_passes_confined, hammer, is_confined, readable, writable,
};

const QUEUE_SIZES: [u16; 2] = [QUEUE_SIZE; 2];
/// The receive and the transmit queue of the first pair.
const QUEUES: (usize, usize) = (0, 1);
/// Without the features that need large buffers.
const NOT_LARGE: u64 = !(1 << bits::VIRTIO_NET_F_GUEST_TSO4 | 1 << bits::VIRTIO_NET_F_GUEST_TSO6);
const NOT_MERGEABLE: u64 = !(1 << bits::VIRTIO_NET_F_MRG_RXBUF);

/// The host's side of the tap.
struct Host(OwnedFd);

impl Host {
    fn send(&self, packet: &[u8]) {
        rustix::io::write(&self.0, packet).unwrap();
    }

    /// The next packet; None if there is none.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 1 << 17];
        match rustix::io::read(&self.0, &mut packet) {
            Ok(length) => {
                packet.truncate(length);
                Some(packet)
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }
}

/// A configuration whose tap is a socket, and the host's side of it.
fn config() -> (Config, Host) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    rustix::io::ioctl_fionbio(&ours, true).unwrap();
    for socket in [&ours, &theirs] {
        setsockopt(socket, sockopt::SndBuf, &(1 << 20)).unwrap();
    }
    (Config::of_sockets(vec![theirs]), Host(ours))
}

/// Prepares what a confined thread needs to create a device: the returned function does so, and sends a packet
/// each way; true if both arrive.
pub(crate) fn prepared() -> impl FnOnce(crate::jail::Confinement) -> bool {
    let (config, host) = config();
    let mut driver = Driver::new(&QUEUE_SIZES);
    move |confinement| {
        let env = Env {
            confinement,
            ..driver.env()
        };
        let mut device = spawn(config, &env).unwrap();
        device
            .activate(driver.activation(device.features() & NOT_LARGE))
            .unwrap();
        let sent = packet(60, 1);
        send(&mut driver, BUFFERS, &sent);
        host.send(&sent);
        driver.offer(QUEUES.0, &[writable(BUFFERS, 2048)]);
        driver.kick(QUEUES.0);
        driver.wait_used(QUEUES.0).1 == 72 && host.receive().is_some_and(|packet| packet == sent)
    }
}

/// A device and its driver, with all features but those that are not in `mask`.
fn activated_with(mask: u64) -> (Device, Driver, Host) {
    let (config, host) = config();
    let driver = Driver::new(&QUEUE_SIZES);
    let mut device = spawn(config, &driver.env()).unwrap();
    device
        .activate(driver.activation(device.features() & mask))
        .unwrap();
    (device, driver, host)
}

fn activated() -> (Device, Driver, Host) {
    activated_with(!0)
}

/// A packet with its header, whose bytes differ.
fn packet(length: usize, seed: u8) -> Vec<u8> {
    // They repeat after these. One by one, those of a large packet take a millisecond without optimisation.
    let period: Vec<u8> = (0..length.min(7 * 256))
        .map(|index| (index / 7) as u8 ^ seed)
        .collect();
    let mut packet = vec![0; HEADER_BYTES as usize];
    packet.extend_from_slice(&period.repeat(length.div_ceil(7 * 256)));
    packet.truncate(HEADER_BYTES as usize + length);
    packet
}

/// Offers `packet` to the device at `address` and waits until it is used.
fn send(driver: &mut Driver, address: u64, packet: &[u8]) {
    driver.set_bytes(address, packet);
    driver.offer(QUEUES.1, &[readable(address, packet.len() as u32)]);
    driver.kick(QUEUES.1);
    driver.wait_used(QUEUES.1);
}

#[test]
fn the_configuration_has_address_status_and_mtu() {
    let (device, _driver, _host) = activated();
    let mut config = [0; 12];
    device.config().read(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5]);
    assert!(device.config().write(0, &[0; 6]).is_err());
}

#[test]
fn packets_go_from_the_guest_to_the_tap_in_order() {
    let (_device, mut driver, host) = activated();
    for number in 0..300_usize {
        let sent = packet(60 + number, number as u8);
        send(&mut driver, BUFFERS, &sent);
        assert_eq!(host.receive().unwrap(), sent);
    }
    // 64 KiB, and divided as Linux does not.
    let sent = packet(LARGEST as usize - HEADER_BYTES as usize, 9);
    let half = sent.len() as u32 / 2;
    driver.set_bytes(BUFFERS, &sent);
    driver.offer(
        QUEUES.1,
        &[
            readable(BUFFERS, 5),
            readable(BUFFERS + 5, half),
            readable(BUFFERS + 5 + u64::from(half), sent.len() as u32 - 5 - half),
        ],
    );
    driver.kick(QUEUES.1);
    driver.wait_used(QUEUES.1);
    assert_eq!(host.receive().unwrap(), sent);
}

#[test]
fn packets_that_a_full_tap_does_not_take_wait_and_are_not_lost() {
    let (_device, mut driver, host) = activated();
    let sent = packet(60_000, 3);
    driver.set_bytes(BUFFERS, &sent);
    for _ in 0..60 {
        driver.offer(QUEUES.1, &[readable(BUFFERS, sent.len() as u32)]);
    }
    driver.kick(QUEUES.1);
    let (mut used, mut received) = (0, 0);
    driver.wait_used(QUEUES.1);
    while received < 60 {
        while host.receive().is_some_and(|packet| packet == sent) {
            received += 1;
        }
        while driver.take_used(QUEUES.1).is_some() {
            used += 1;
        }
        std::thread::yield_now();
    }
    while used < 59 {
        driver.wait_used(QUEUES.1);
        used += 1;
    }
    assert!(host.receive().is_none());
}

#[test]
fn a_second_driver_gets_no_packets_of_the_first() {
    let (mut device, mut driver, host) = activated_with(NOT_LARGE);
    device.reset().unwrap();
    host.send(&packet(100, 1));
    driver.restart();
    device
        .activate(driver.activation(device.features() & NOT_LARGE))
        .unwrap();
    send(&mut driver, BUFFERS, &packet(60, 0));
    host.send(&packet(200, 2));
    driver.offer(QUEUES.0, &[writable(BUFFERS, 2048)]);
    driver.kick(QUEUES.0);
    assert_eq!(driver.wait_used(QUEUES.0).1, 212);
}

#[test]
fn a_tap_that_is_gone_sets_the_link_down_once() {
    let (device, mut driver, host) = activated_with(NOT_LARGE);
    driver.offer(QUEUES.0, &[writable(BUFFERS, 2048)]);
    drop(host);
    driver
        .interrupts
        .wait("a change of the link", |signals| signals.config > 0);
    let mut status = [9; 2];
    device.config().read(STATUS, &mut status);
    assert_eq!(status, [0, 0]);
    // The device goes on: packets are dropped.
    send(&mut driver, BUFFERS, &packet(60, 0));
    assert_eq!(driver.interrupts.signals().config, 1);
}

#[test]
fn a_read_that_fails_leaves_the_link_up() {
    let (device, mut driver, host) = activated_with(NOT_LARGE);
    driver.offer(QUEUES.0, &[writable(BUFFERS, 2048)]);
    // The host closes its socket without reading this, so the next read fails with ECONNRESET.
    send(&mut driver, BUFFERS, &packet(60, 0));
    drop(host);
    // By the second one, the worker has read.
    for _ in 0..2 {
        send(&mut driver, BUFFERS, &packet(60, 0));
    }
    let mut status = [9; 2];
    device.config().read(STATUS, &mut status);
    assert_eq!(status, [1, 0]);
    assert_eq!(driver.interrupts.signals().config, 0);
}

#[test]
fn packets_use_memory_that_was_plugged_in() {
    let (device, mut driver, host) = activated_with(NOT_LARGE);
    let plugged = GuestRegionMmap::from_range(GuestAddress(MEMORY_SIZE), 1 << 20, None).unwrap();
    driver.memory = Arc::new(driver.memory.insert_region(Arc::new(plugged)).unwrap());
    device.memory_sender().give(Arc::clone(&driver.memory));
    let sent = packet(60, 1);
    send(&mut driver, MEMORY_SIZE, &sent);
    assert_eq!(host.receive().unwrap(), sent);
    driver.offer(QUEUES.0, &[writable(MEMORY_SIZE, 2048)]);
    host.send(&packet(100, 2));
    driver.kick(QUEUES.0);
    assert_eq!(driver.wait_used(QUEUES.0).1, 112);
    assert_eq!(driver.bytes(MEMORY_SIZE + 12, 100), packet(100, 2)[12..]);
}

#[test]
fn a_configuration_is_checked() {
    for (taps, mac, mtu, named) in [
        (0, [2, 0, 0, 0, 0, 1], 1500, "got 0"),
        (9, [2, 0, 0, 0, 0, 1], 1500, "got 9"),
        (1, [0; 6], 1500, "one station"),
        (1, [1, 0, 0, 0, 0, 1], 1500, "one station"),
        (1, [2, 0, 0, 0, 0, 1], 67, "67"),
        (1, [2, 0, 0, 0, 0, 1], 1500, "flags"),
    ] {
        let taps = (0..taps).map(|_| tempfile::tempfile().unwrap().into());
        let error = Config::new(taps.collect(), mac, mtu).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn offloads_follow_what_the_driver_accepts() {
    let of = |accepted: &[u32]| offloads(accepted.iter().fold(0, |features, bit| features | feature(*bit)));
    let (checksum, tso4) = (bits::VIRTIO_NET_F_GUEST_CSUM, bits::VIRTIO_NET_F_GUEST_TSO4);
    assert_eq!(of(&[]), 0);
    assert_eq!(of(&[tso4]), 0, "not without checksums");
    assert_eq!(of(&[checksum]), libc::TUN_F_CSUM);
    assert_eq!(of(&[checksum, tso4]), libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    assert_eq!(of(&[checksum, bits::VIRTIO_NET_F_GUEST_ECN]), libc::TUN_F_CSUM);
    assert_eq!(of(&FEATURES), 0xf);
}

#[test]
fn survives_random_operations() {
    if !is_confined("virtio::net::tests::survives_random_operations") {
        return;
    }
    let (mut device, mut driver, host) = activated();
    hammer(&mut driver, &mut device, |prng| {
        while host.receive().is_some() {}
        // A socket that is full makes them wait.
        let _ = rustix::io::write(&host.0, &packet(prng.below(70_000) as usize, 0));
        packet(prng.below(9000) as usize, prng.next() as u8)
    });
    while host.receive().is_some() {}
    device.activate(driver.activation(device.features())).unwrap();
    let sent = packet(60, 1);
    send(&mut driver, BUFFERS, &sent);
    assert_eq!(host.receive().unwrap(), sent);
}

#[test]
fn works_confined() {
    assert_passes_confined("virtio::net::tests::packets");
}
