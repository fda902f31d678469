//! Requests that no driver would send, and random ones.

#![allow(clippy::cast_possible_truncation, reason = "random numbers are small")]

use super::*;
use crate::virtio::testing::{MEMORY_SIZE, malformed_chains};

#[test]
fn a_request_beyond_the_end_fails_alone() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        for (kind, sector, data, status) in [
            (IN, SECTORS, writable(DATA, 512), 1),
            (IN, SECTORS - 1, writable(DATA, 1024), 1),
            (IN, u64::MAX, writable(DATA, 512), 1),
            (IN, u64::MAX / 512, writable(DATA, 512), 1),
            (IN, 0, writable(DATA, 511), 1),
            (IN, 0, readable(DATA, 512), 1),
            (IN, 0, writable(MEMORY_SIZE - 256, 512), 1),
            (OUT, SECTORS, readable(DATA, 512), 1),
            (OUT, 0, writable(DATA, 512), 1),
            (OUT, 0, readable(DATA, 513), 1),
            (OUT, 0, readable(u64::MAX - 100, 512), 1),
            (FLUSH, 0, readable(DATA, 512), 1),
            (DISCARD, 0, readable(DATA, 15), 1),
            (DISCARD, 0, readable(DATA, 32), 1),
            (2, 0, readable(DATA, 512), 2),
            (u32::MAX, 0, writable(DATA, 512), 2),
        ] {
            let (found, length) = disk.request(kind, sector, &[data]);
            assert_eq!(
                (found, length),
                (status, 1),
                "type {kind}, sector {sector}, {data:?}"
            );
        }
        assert_eq!(disk.request(IN, 0, &[writable(DATA, 512)]), (0, 513));
    }
}

#[test]
fn a_request_without_header_or_status_is_returned() {
    let mut disk = Fixture::new(true);
    for (chain, length) in [
        (vec![readable(header_at(0), 16)], 0),
        (vec![readable(header_at(0), 15), writable(status_at(0), 1)], 1),
        (vec![writable(status_at(0), 1)], 1),
        (vec![readable(header_at(0), 16), writable(MEMORY_SIZE, 1)], 0),
        (vec![readable(header_at(0), 16), writable(u64::MAX, 1)], 0),
    ] {
        disk.driver.offer(0, &chain);
        disk.driver.kick(0);
        assert_eq!(disk.driver.wait_used(0).1, length, "{chain:?}");
    }
    assert_eq!(disk.request(IN, 0, &[writable(DATA, 512)]), (0, 513));
}

#[test]
fn malformed_chains_fail_cleanly() {
    for (name, chain) in malformed_chains() {
        let mut disk = Fixture::new(true);
        disk.driver.offer_raw(0, &chain);
        disk.driver.kick(0);
        disk.driver.wait_used_or_reset(0);
        disk.driver.reactivate(&mut disk.device);
        assert_eq!(disk.request(IN, 0, &[writable(DATA, 512)]), (0, 513), "{name}");
    }
}

#[test]
fn survives_random_operations() {
    if !is_confined("virtio::blk::tests::malformed::survives_random_operations") {
        return;
    }
    for io_uring in [true, false] {
        let mut disk = Fixture::with(Options {
            io_uring,
            queues: 2,
            ..Options::default()
        });
        hammer(&mut disk.driver, &mut disk.device, |prng| {
            const TYPES: [u32; 7] = [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99];
            let kind = TYPES[prng.below(7) as usize];
            let sector = prng.below(SECTORS + 8);
            let mut request = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            match prng.below(3) {
                0 => {}
                1 => request.resize(16 + 512 * prng.below(16) as usize, 0x33),
                _ => {
                    request.extend(prng.below(SECTORS + 8).to_le_bytes());
                    request.extend((prng.below(16) as u32).to_le_bytes());
                    request.extend((prng.below(3) as u32).to_le_bytes());
                }
            }
            request
        });
        disk.device
            .activate(disk.driver.activation(disk.device.features()))
            .unwrap();
        assert_eq!(disk.request(IN, 0, &[writable(DATA, 512)]).0, 0);
    }
}
