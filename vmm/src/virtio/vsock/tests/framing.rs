//! Packets that the driver divides into descriptors as it likes (virtio 1.2, 2.7.4.2), in both directions.
//! Linux 6.17 and the stable kernels from 6.12.69 on send data in several descriptors.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use super::*;
use crate::virtio::testing::{Fields, INDIRECT, MEMORY_SIZE, NEXT};

/// Where the packets of these tests are: behind all slots for packets to send.
const AREA: u64 = TX_AREA + (8 << 20);
/// Bytes per scattered packet: an indirect table, then its buffers.
const STRIDE: u64 = 256 * 1024;
/// Bytes between two buffers of a scattered packet, so that they are not contiguous.
const GAP: u64 = 16;

/// Buffers of the given lengths, with gaps, at `at`: address and length of each.
fn scatter(at: u64, lengths: &[u32]) -> Vec<(u64, u32)> {
    let mut address = at + 0x4000;
    lengths
        .iter()
        .map(|length| {
            let buffer = (address, *length);
            address += u64::from(*length) + GAP;
            buffer
        })
        .collect()
}

/// The descriptors of a chain of `buffers`, each made by `kind`.
fn descriptors(buffers: &[(u64, u32)], kind: fn(u64, u32) -> Fields) -> Vec<Fields> {
    (1..)
        .zip(buffers)
        .map(|(next, (address, length))| {
            let (address, length, flags, _) = kind(*address, *length);
            let more = usize::from(next) < buffers.len();
            (address, length, flags | if more { NEXT } else { 0 }, next)
        })
        .collect()
}

impl Guest {
    /// Offers a chain of `descriptors` by an indirect table at `table`.
    fn offer_indirect(&mut self, queue: usize, table: u64, descriptors: &[Fields]) -> u16 {
        self.driver.set_table(table, descriptors);
        let length = 16 * descriptors.len() as u32;
        self.driver.offer(queue, &[(table, length, INDIRECT, 0)])
    }

    /// Sends `bytes`, divided into buffers of the given lengths, and waits until they are used.
    fn send_scattered(&mut self, bytes: &[u8], lengths: &[u32]) {
        let buffers = scatter(AREA, lengths);
        let mut rest = bytes;
        for (address, length) in &buffers {
            let (part, after) = rest.split_at((*length as usize).min(rest.len()));
            self.driver.set_bytes(*address, part);
            rest = after;
        }
        self.send_descriptors(&descriptors(&buffers, readable));
    }

    fn send_descriptors(&mut self, descriptors: &[Fields]) {
        self.offer_indirect(1, AREA, descriptors);
        self.driver.kick_if_wanted(1);
        assert_eq!(self.driver.wait_used(1).1, 0);
    }

    /// A packet with `data` for the host's port 7, header and payload.
    fn data_packet(&self, data: &[u8]) -> Vec<u8> {
        let mut header = self.packet(RW, 7);
        header.len = data.len() as u32;
        [&header.bytes(), data].concat()
    }
}

#[test]
fn a_header_and_two_buffers_of_32_kib_arrive() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(64 << 10);
    guest.send_scattered(&guest.data_packet(&data), &[HEADER_LENGTH, 32 << 10, 32 << 10]);
    assert_eq!(read_exactly(&host, data.len()), data);
    guest.send_data(7, b"next");
    assert_eq!(read_exactly(&host, 4), b"next");
}

#[test]
fn a_header_may_be_split_at_every_byte() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    for split in 0..=HEADER_LENGTH {
        let data = pattern(100 + split as usize);
        let packet = guest.data_packet(&data);
        let length = packet.len() as u32;
        guest.send_scattered(&packet, &[split, length - split]);
        guest.send_scattered(
            &packet,
            &[split, HEADER_LENGTH - split, 60, length - HEADER_LENGTH - 60],
        );
        assert_eq!(read_exactly(&host, 2 * data.len()), data.repeat(2), "{split}");
    }
}

#[test]
fn header_and_data_may_come_in_buffers_of_one_byte() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(200);
    let packet = guest.data_packet(&data);
    guest.send_scattered(&packet, &vec![1; packet.len()]);
    assert_eq!(read_exactly(&host, data.len()), data);
    // Buffers of length 0 in between, and unused bytes at the end.
    let mut lengths = [HEADER_LENGTH, 0].to_vec();
    lengths.extend([1, 0].repeat(50));
    lengths.push(10_000);
    guest.send_scattered(&packet, &lengths);
    assert_eq!(read_exactly(&host, data.len()), data);
}

#[test]
fn scattered_data_for_a_full_stream_is_kept_in_order() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(64 << 10);
    let mut sent = 0_u32;
    // The credit of the connection, which is more than the stream takes at once.
    while sent < BUF_ALLOC {
        guest.send_scattered(&guest.data_packet(&data), &[HEADER_LENGTH, 1, 40_000, 25_535]);
        sent += data.len() as u32;
    }
    for _ in 0..sent as usize / data.len() {
        assert_eq!(read_exactly(&host, data.len()), data);
    }
}

#[test]
fn a_packet_without_its_data_resets_only_its_connection() {
    type Case = (&'static str, fn(&mut Vec<Fields>));
    let cases: [Case; 7] = [
        ("one byte is missing", |d| d[2].1 -= 1),
        ("the last buffer is missing", |d| d[1].2 = 0),
        ("a buffer outside of memory", |d| d[1].0 = MEMORY_SIZE + 0x1000),
        ("a buffer across the end of memory", |d| d[2].0 = MEMORY_SIZE - 8),
        ("an address that wraps", |d| d[2].0 = u64::MAX - 8),
        ("a device-writable buffer", |d| d[2].2 = writable(0, 0).2),
        ("a next descriptor beyond the table", |d| d[0].3 = 3),
    ];
    for (name, change) in cases {
        let mut guest = Guest::new();
        let good = guest.connect(8);
        let bad = guest.connect(7);
        let buffers = scatter(AREA, &[HEADER_LENGTH, 1000, 1000]);
        let packet = guest.data_packet(&pattern(2000));
        guest.driver.set_bytes(buffers[0].0, &packet[..HEADER_BYTES]);
        let mut chain = descriptors(&buffers, readable);
        change(&mut chain);
        guest.send_descriptors(&chain);
        let (header, _) = guest.receive();
        assert_eq!((header.op, header.src_port), (RST, 7), "{name}");
        assert_at_end(&bad);
        guest.send_data(8, name.as_bytes());
        assert_eq!(read_exactly(&good, name.len()), name.as_bytes());
        guest.assert_quiet(8);
    }
}

#[test]
fn a_packet_over_the_limit_or_in_too_many_buffers_resets_its_connection() {
    for lengths in [vec![HEADER_LENGTH, 64 << 10, 1], vec![1; 257]] {
        let mut guest = Guest::new();
        let host = guest.connect(7);
        let data = lengths.iter().sum::<u32>() - HEADER_LENGTH;
        guest.send_scattered(&guest.data_packet(&pattern(data as usize)), &lengths);
        assert_eq!(guest.receive_op(), RST);
        assert_at_end(&host);
    }
}

#[test]
fn less_than_a_header_is_dropped() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let packet = guest.data_packet(&[]);
    for lengths in [[43, 0], [20, 23], [0, 0]] {
        guest.send_scattered(&packet, &lengths);
    }
    guest.assert_quiet(7);
    guest.send_data(7, b"data");
    assert_eq!(read_exactly(&host, 4), b"data");
}

/// A guest all of whose receive buffers are divided into parts of `lengths`, and a connection to port 7.
fn scattered_receiver(lengths: &[u32]) -> (Guest, UnixStream) {
    let mut guest = Guest::new();
    guest.driver.reactivate(&mut guest.device);
    for slot in 0..20 {
        let at = AREA + STRIDE + slot * STRIDE;
        let chain = descriptors(&scatter(at, lengths), writable);
        guest.offer_indirect(0, at, &chain);
    }
    guest.driver.kick_if_wanted(0);
    guest.send(REQUEST, 7);
    let (header, _) = receive_scattered(&mut guest, lengths);
    assert_eq!(header.op, RESPONSE);
    let (_, host) = guest.connected.recv_timeout(DEADLINE).unwrap();
    (guest, host)
}

/// The next packet, gathered from the parts of its receive buffer. Its unused bytes are 0.
fn receive_scattered(guest: &mut Guest, lengths: &[u32]) -> (RawHeader, Vec<u8>) {
    let (head, length) = guest.driver.wait_used(0);
    let table = guest.driver.descriptor_address(0, head);
    let mut bytes = Vec::new();
    for (address, length) in scatter(table, lengths) {
        bytes.extend(guest.driver.bytes(address, length as usize));
        let gap = guest.driver.bytes(address + u64::from(length), GAP as usize);
        assert_eq!(
            gap, [0; GAP as usize],
            "written beyond the buffer at {address:#x}"
        );
    }
    assert!(bytes[length as usize..].iter().all(|byte| *byte == 0));
    bytes.truncate(length as usize);
    let header = RawHeader::parse(&bytes);
    assert_eq!(header.len as usize + HEADER_BYTES, bytes.len());
    (header, bytes.split_off(HEADER_BYTES))
}

#[test]
fn the_device_fills_receive_buffers_of_any_framing() {
    let layouts: [&[u32]; 7] = [
        &[HEADER_LENGTH, 4096],
        &[HEADER_LENGTH, 1000, 1000, 1000],
        &[HEADER_LENGTH + 1, 3000],
        &[HEADER_LENGTH - 1, 3000],
        &[1, 43, 1, 999, 0, 2000],
        &[0, HEADER_LENGTH, 0, 1],
        &[1; 256],
    ];
    for lengths in layouts {
        let (mut guest, host) = scattered_receiver(lengths);
        let room = lengths.iter().sum::<u32>() - HEADER_LENGTH;
        let data = pattern(room as usize + 5);
        (&host).write_all(&data).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        let mut is_first = true;
        while received.len() < data.len() {
            let (header, bytes) = receive_scattered(&mut guest, lengths);
            assert_eq!(header.op, RW, "{lengths:?}");
            assert!(
                !is_first || header.len == room,
                "{lengths:?}: the first packet has {} bytes",
                header.len
            );
            is_first = false;
            received.extend(bytes);
        }
        assert_eq!(received, data, "{lengths:?}");
        // The end of the stream comes after all of its data.
        let (header, _) = receive_scattered(&mut guest, lengths);
        assert_eq!((header.op, header.flags), (SHUTDOWN, 2), "{lengths:?}");
    }
}

#[test]
fn receive_buffers_without_room_for_data_are_returned_unused() {
    for small in [
        &[HEADER_LENGTH][..],
        &[HEADER_LENGTH, 0],
        &[10, 20],
        &[0],
        &[1; 44],
    ] {
        let (mut guest, host) = scattered_receiver(&[HEADER_LENGTH, 100]);
        // The 19 good buffers that are left come first.
        let chain = descriptors(&scatter(AREA, small), writable);
        for _ in 0..3 {
            guest.offer_indirect(0, AREA, &chain);
        }
        (&host).write_all(&pattern(19 * 100)).unwrap();
        for _ in 0..19 {
            assert_eq!(guest.driver.wait_used(0).1, HEADER_LENGTH + 100);
        }
        guest.fwd_cnt = 19 * 100;
        (&host).write_all(b"more").unwrap();
        for _ in 0..3 {
            assert_eq!(guest.driver.wait_used(0).1, 0, "{small:?}");
        }
        let good = descriptors(&scatter(AREA, &[HEADER_LENGTH, 100]), writable);
        guest.offer_indirect(0, AREA, &good);
        guest.driver.kick_if_wanted(0);
        assert_eq!(guest.driver.wait_used(0).1, HEADER_LENGTH + 4, "{small:?}");
    }
}
