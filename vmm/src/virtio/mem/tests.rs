//! The device on in-memory guest RAM, whose upper half is the region: 8 blocks, all mapped from the start.

use std::sync::mpsc::{Receiver, channel};

use super::request::tests::request;
use super::*;
use crate::virtio::testing::{
    BUFFERS, Driver, Fields, HOTPLUG, NEXT, Prng, WRITE, assert_passes_confined, hammer, is_confined,
    malformed_chains, readable, writable,
};

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
/// Responses: the type, and the state in the answer to a question.
const ACK: (u8, u8) = (0, 0);
const NACK: (u8, u8) = (1, 0);
const ERROR: (u8, u8) = (3, 0);
/// Where requests and responses are.
const REQUEST: u64 = BUFFERS;
const RESPONSE: u64 = BUFFERS + 4096;

struct Guest {
    device: Device,
    driver: Driver,
    reached: Receiver<u64>,
}

impl Guest {
    fn new() -> Self {
        let driver = Driver::new(QUEUE_SIZES);
        let (sender, reached) = channel();
        let config = Config {
            max_bytes: HOTPLUG.bytes,
            on_reached: Box::new(move |bytes| sender.send(bytes).unwrap_or_default()),
        };
        let mut device = spawn(config, &driver.env()).unwrap();
        device.activate(driver.activation(device.features())).unwrap();
        Self {
            device,
            driver,
            reached,
        }
    }

    /// A guest that is asked to plug `blocks`, with the whole region usable.
    fn asked(blocks: u64) -> Self {
        let guest = Self::new();
        guest.ask(blocks);
        guest
    }

    fn ask(&self, blocks: u64) {
        let plugger = self.device.plugger().unwrap();
        plugger.request(HOTPLUG.bytes, blocks * BLOCK);
    }

    /// Sends a request about `blocks` from block `first` of the region on; returns the response.
    fn send(&mut self, kind: u16, first: u64, blocks: u16) -> (u8, u8) {
        self.send_bytes(&request(kind, HOTPLUG.start + first * BLOCK, blocks))
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> (u8, u8) {
        self.driver.set_bytes(REQUEST, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let chain = [readable(REQUEST, length), writable(RESPONSE, 10)];
        assert_eq!(self.send_chain(&chain), 10);
        let response = self.driver.bytes(RESPONSE, 10);
        (response[0], response[8])
    }

    /// The bytes that the device wrote.
    fn send_chain(&mut self, chain: &[Fields]) -> u32 {
        self.driver.set_bytes(RESPONSE, &[0xee; 10]);
        self.driver.offer(0, chain);
        self.driver.kick(0);
        self.driver.wait_used(0).1
    }

    /// The configuration space as the driver reads it: 7 numbers.
    fn config(&self) -> [u64; 7] {
        let mut bytes = [0; 56];
        self.device.config().read(0, &mut bytes);
        std::array::from_fn(|index| u64::from_le_bytes(bytes[index * 8..][..8].try_into().unwrap()))
    }

    /// Usable, plugged and requested blocks.
    fn sizes(&self) -> [u64; 3] {
        let [.., usable, plugged, requested] = self.config();
        [usable, plugged, requested].map(|bytes| bytes / BLOCK)
    }

    fn first_byte(&self, block: u64) -> u8 {
        self.driver.bytes(HOTPLUG.start + block * BLOCK, 1)[0]
    }

    fn set_first_bytes(&self) {
        for block in 0..8 {
            self.driver.set_bytes(HOTPLUG.start + block * BLOCK, &[0xa5]);
        }
    }
}

#[test]
fn the_configuration_describes_the_region_and_follows_the_sizes() {
    let mut guest = Guest::new();
    let (start, bytes) = (HOTPLUG.start, HOTPLUG.bytes);
    assert_eq!(guest.config(), [BLOCK, 0, start, bytes, 0, 0, 0]);
    guest.ask(3);
    assert_eq!(guest.driver.interrupts.signals().config, 1);
    assert_eq!(guest.sizes(), [8, 0, 3]);
    assert_eq!(guest.send(PLUG, 0, 2), ACK);
    assert_eq!(guest.sizes(), [8, 2, 3]);
    assert_eq!(guest.send(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(guest.sizes(), [8, 0, 3]);
    assert_eq!(guest.driver.interrupts.signals().config, 1, "its own change");
    assert!(guest.device.config().write(48, &[0; 8]).is_err());
}

#[test]
fn requests_are_answered_and_invalid_ones_have_no_effect() {
    let mut guest = Guest::asked(4);
    for (kind, first, blocks, expected) in [
        (PLUG, 0, 5, NACK),
        (PLUG, 1, 2, ACK),
        (PLUG, 2, 1, ERROR),
        (PLUG, 7, 2, ERROR),
        (STATE, 1, 2, ACK),
        (STATE, 3, 5, (0, 1)),
        (STATE, 0, 8, (0, 2)),
        (STATE, 0, 9, ERROR),
        (UNPLUG, 0, 2, ERROR),
        (UNPLUG, 2, 1, ACK),
        (UNPLUG, 2, 1, ERROR),
        (4, 0, 1, ERROR),
    ] {
        assert_eq!(
            guest.send(kind, first, blocks),
            expected,
            "{kind} {first} {blocks}"
        );
    }
    assert_eq!(guest.sizes(), [8, 1, 4]);
    let odd = request(PLUG, HOTPLUG.start + 4096, 1);
    let unaligned = guest.send_bytes(&odd);
    assert_eq!(unaligned, ERROR);
    assert_eq!(guest.send_bytes(&odd[..23]), ERROR);
    assert_eq!(guest.sizes(), [8, 1, 4]);
}

#[test]
fn memory_of_unplugged_blocks_and_of_no_others_goes_back_to_the_host() {
    let mut guest = Guest::asked(8);
    assert_eq!(guest.send(PLUG, 0, 8), ACK);
    guest.set_first_bytes();
    assert_eq!(guest.send(UNPLUG, 2, 3), ACK);
    let bytes: Vec<u8> = (0..8).map(|block| guest.first_byte(block)).collect();
    assert_eq!(bytes, [0xa5, 0xa5, 0, 0, 0, 0xa5, 0xa5, 0xa5]);
    // What a guest has written to blocks that it has not plugged goes, too.
    guest.set_first_bytes();
    assert_eq!(guest.send(UNPLUG_ALL, 0, 0), ACK);
    assert!((0..8).all(|block| guest.first_byte(block) == 0));
    assert_eq!(
        guest.driver.bytes(REQUEST, 1),
        [2],
        "memory outside of the region"
    );
}

#[test]
fn a_reached_size_is_reported_once_for_each_request() {
    let mut guest = Guest::asked(2);
    assert_eq!(guest.send(PLUG, 0, 1), ACK);
    assert!(guest.reached.try_recv().is_err());
    assert_eq!(guest.send(PLUG, 1, 1), ACK);
    assert_eq!(guest.reached.try_recv(), Ok(2 * BLOCK));
    for _ in 0..10 {
        assert_eq!(guest.send(UNPLUG, 0, 1), ACK);
        assert_eq!(guest.send(PLUG, 0, 1), ACK);
    }
    assert!(guest.reached.try_recv().is_err());
    guest.ask(2);
    assert_eq!(guest.reached.try_recv(), Ok(2 * BLOCK), "it was reached already");
    guest.ask(0);
    assert_eq!(guest.send(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(guest.reached.try_recv(), Ok(0));
    let sizes = guest.device.plugger().unwrap().sizes();
    assert_eq!((sizes.requested, sizes.plugged), (0, 0));
}

#[test]
fn what_is_plugged_survives_a_reset_of_the_device() {
    let mut guest = Guest::asked(4);
    assert_eq!(guest.send(PLUG, 0, 3), ACK);
    guest.set_first_bytes();
    guest.driver.reactivate(&mut guest.device);
    assert_eq!(guest.sizes(), [8, 3, 4]);
    assert_eq!(guest.first_byte(2), 0xa5);
    assert_eq!(guest.send(STATE, 0, 3), ACK);
}

#[test]
fn a_request_may_be_in_parts_and_needs_space_for_its_response() {
    let mut guest = Guest::asked(4);
    guest.driver.set_bytes(REQUEST, &request(PLUG, HOTPLUG.start, 1));
    for space in [
        writable(RESPONSE, 9),
        writable(u64::MAX - 64, 10),
        writable(RESPONSE, 0),
    ] {
        assert_eq!(guest.send_chain(&[readable(REQUEST, 24), space]), 0, "{space:?}");
    }
    assert_eq!(guest.sizes(), [8, 0, 4], "without a response nothing is done");
    let parts = [
        readable(REQUEST, 1),
        readable(REQUEST + 1, 40),
        writable(RESPONSE, 3),
        writable(RESPONSE + 3, 4096),
    ];
    assert_eq!(guest.send_chain(&parts), 10);
    assert_eq!(guest.driver.bytes(RESPONSE, 10), [0; 10]);
    assert_eq!(guest.sizes(), [8, 1, 4]);
    let outside = [readable(u64::MAX - 64, 24), writable(RESPONSE, 10)];
    assert_eq!(guest.send_chain(&outside), 10);
    assert_eq!(guest.driver.bytes(RESPONSE, 1), [3]);
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let config = Config {
        max_bytes: HOTPLUG.bytes + BLOCK,
        on_reached: Box::new(|_| {}),
    };
    let driver = Driver::new(QUEUE_SIZES);
    let error = spawn(config, &driver.env()).err().unwrap().to_string();
    assert!(error.contains("check the size"), "{error}");
}

#[test]
fn malformed_chains_fail_cleanly() {
    for (name, chain) in malformed_chains() {
        let mut guest = Guest::asked(4);
        guest.driver.offer_raw(0, &chain);
        guest.driver.kick(0);
        guest.driver.wait_used_or_reset(0);
        guest
            .device
            .reset()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        guest.driver.reactivate(&mut guest.device);
        assert_eq!(guest.send(PLUG, 0, 1), ACK, "{name}");
    }
}

/// A request that may be valid.
fn random_request(prng: &mut Prng) -> Vec<u8> {
    let address = match prng.below(8) {
        0 => prng.next(),
        1 => HOTPLUG.start + prng.below(HOTPLUG.bytes),
        _ => HOTPLUG.start + prng.below(10) * BLOCK,
    };
    let blocks = if prng.below(8) == 0 {
        prng.small(u16::MAX)
    } else {
        prng.small(4)
    };
    let mut bytes = request(prng.small(5), address, blocks).to_vec();
    bytes.truncate(if prng.below(16) == 0 { 23 } else { 24 });
    bytes
}

#[test]
fn survives_random_operations() {
    if !is_confined("virtio::mem::tests::survives_random_operations") {
        return;
    }
    let Guest {
        mut device,
        mut driver,
        reached,
    } = Guest::asked(4);
    hammer(&mut driver, &mut device, random_request);
    assert!(reached.try_iter().count() <= 1);
    let sizes = device.plugger().unwrap().sizes();
    assert!(sizes.plugged <= 4 * BLOCK, "{sizes:?}");
    device.activate(driver.activation(device.features())).unwrap();
    let mut guest = Guest {
        device,
        driver,
        reached,
    };
    assert_eq!(guest.send(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(guest.send(PLUG, 4, 4), ACK);
}

#[test]
fn works_confined() {
    assert_passes_confined("virtio::mem::tests::memory_of");
}

#[test]
fn other_descriptors_beyond_a_bound_are_not_read() {
    let mut guest = Guest::asked(4);
    let table = BUFFERS + 0x1_0000;
    let empty = (0..9_u16).map(|index| (REQUEST, 0, NEXT, index + 1));
    let descriptors: Vec<Fields> = empty
        .chain([(REQUEST, 24, NEXT, 10), (RESPONSE, 10, WRITE, 0)])
        .collect();
    guest.driver.set_bytes(REQUEST, &request(PLUG, HOTPLUG.start, 1));
    guest.driver.set_table(table, &descriptors);
    let length = u32::try_from(descriptors.len() * 16).unwrap();
    assert_eq!(
        guest.send_chain(&[(table, length, crate::virtio::testing::INDIRECT, 0)]),
        10
    );
    assert_eq!(guest.driver.bytes(RESPONSE, 1), [3]);
}
