//! Packets that a driver must not send, and floods.

use std::io::Write as _;

use super::*;
use crate::virtio::testing::{Fields, INDIRECT, Prng, hammer, is_confined, malformed_chains, readable};

#[test]
fn refused_and_unknown_connections_get_an_rst() {
    let mut guest = Guest::new();
    guest.send(REQUEST, 99);
    assert_eq!(guest.receive_op(), RST);
    for op in [
        RESPONSE,
        SHUTDOWN,
        RW,
        CREDIT_UPDATE,
        CREDIT_REQUEST,
        8,
        0,
        0xffff,
    ] {
        guest.send(op, 1234);
        let (header, _) = guest.receive();
        assert_eq!(
            (header.op, header.src_port, header.dst_port),
            (RST, 1234, 5000),
            "op {op}"
        );
    }
    let _host = guest.connect(7);
    guest.assert_quiet(7);
}

#[test]
fn malformed_packets_are_dropped_or_get_an_rst() {
    type Case = (&'static str, fn(&mut RawHeader), Option<u16>);
    let cases: [Case; 12] = [
        ("another guest's CID", |w| w.src_cid = 4, None),
        ("a CID beyond 32 bits", |w| w.src_cid = (1 << 32) | 3, None),
        ("an RST without a connection", |w| w.op = RST, None),
        ("an RST of an unknown type", |w| (w.op, w.kind) = (RST, 9), None),
        ("a length without payload", |w| (w.op, w.len) = (RW, 100), Some(1)),
        (
            "a length over the limit",
            |w| (w.op, w.len) = (RW, 64 * 1024 + 1),
            Some(1),
        ),
        ("the greatest length", |w| (w.op, w.len) = (RW, u32::MAX), Some(1)),
        ("type seqpacket", |w| w.kind = 2, Some(2)),
        ("type 0", |w| w.kind = 0, Some(0)),
        ("type 0xffff", |w| w.kind = 0xffff, Some(0xffff)),
        ("an unknown operation", |w| w.op = 99, Some(1)),
        ("operation 0", |w| w.op = 0, Some(1)),
    ];
    for (name, change, reset) in cases {
        let mut guest = Guest::new();
        let mut header = guest.packet(REQUEST, 1234);
        change(&mut header);
        guest.send_packet(&header, &[]);
        if let Some(kind) = reset {
            let (header, _) = guest.receive();
            assert_eq!((header.op, header.kind), (RST, kind), "{name}");
        }
        let host = guest.connect(7);
        guest.send_data(7, name.as_bytes());
        assert_eq!(read_exactly(&host, name.len()), name.as_bytes());
        guest.assert_quiet(7);
    }
}

#[test]
fn the_rst_for_a_packet_to_another_cid_comes_from_that_cid() {
    let mut guest = Guest::new();
    let mut header = guest.packet(REQUEST, 1234);
    header.dst_cid = 17;
    guest.send_packet(&header, &[]);
    let used = guest.driver.wait_used(0);
    let at = RX_AREA + u64::from(guest.slot_of(used.0)) * SLOT;
    let reply = RawHeader::parse(&guest.driver.bytes(at, HEADER_BYTES));
    assert_eq!((reply.op, reply.src_cid, reply.dst_cid), (RST, 17, 3));
}

#[test]
fn a_protocol_violation_resets_only_its_connection() {
    for op in [REQUEST, RESPONSE] {
        let mut guest = Guest::new();
        let good = guest.connect(7);
        let bad = guest.connect(8);
        guest.send(op, 8);
        assert_eq!(guest.receive().0.src_port, 8);
        assert_at_end(&bad);
        guest.send_data(7, b"fine");
        assert_eq!(read_exactly(&good, 4), b"fine");
    }
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.shut_down(7, 2);
    assert_at_end(&host);
    guest.send_data(7, b"after the end");
    assert_eq!(guest.receive_op(), RST);
}

#[test]
fn the_number_of_connections_is_bounded() {
    let mut guest = Guest::new();
    let mut hosts = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        hosts.push(guest.connect(10_000 + port));
    }
    guest.send(REQUEST, 9);
    assert_eq!(guest.receive_op(), RST);
    guest.send(RST, 10_000);
    guest.connect(9);
}

#[test]
fn a_flood_without_receive_buffers_is_bounded() {
    let mut guest = Guest::new();
    while guest.driver.take_used(0).is_some() {}
    for port in 0..5000 {
        guest.send(RW, port);
    }
    let mut resets = 0;
    while let Some(used) = guest.driver.take_used(0) {
        assert_eq!(
            guest
                .driver
                .bytes(RX_AREA + u64::from(guest.slot_of(used.0)) * SLOT + 30, 1),
            [3]
        );
        resets += 1;
    }
    assert_eq!(resets, 60, "one per receive buffer");
}

#[test]
fn malformed_chains_fail_cleanly_in_either_queue() {
    for queue in [0, 1, 2] {
        for (name, chain) in malformed_chains() {
            let mut guest = Guest::new();
            guest.driver.reactivate(&mut guest.device);
            guest.driver.offer_raw(queue, &chain);
            guest.driver.kick(queue);
            if queue == 0 {
                // The device pops receive buffers only if a packet is pending.
                let at = TX_AREA + SLOT;
                let header = guest.packet(RW, 1234);
                guest.driver.set_bytes(at, &header.bytes());
                guest.driver.offer(1, &[readable(at, HEADER_LENGTH)]);
                guest.driver.kick(1);
                guest.driver.wait_used_or_reset(1);
            } else if queue == 1 {
                guest.driver.wait_used_or_reset(1);
            }
            guest.restart();
            let host = guest.connect(7);
            guest.send_data(7, name.as_bytes());
            assert_eq!(read_exactly(&host, name.len()), name.as_bytes());
        }
    }
}

#[test]
fn header_and_payload_may_share_a_descriptor_or_an_indirect_table() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let mut header = guest.packet(RW, 7);
    header.len = 5;
    let at = TX_AREA + SLOT;
    guest.driver.set_bytes(at, &header.bytes());
    guest.driver.set_bytes(at + u64::from(HEADER_LENGTH), b"whole");
    guest.driver.offer(1, &[readable(at, HEADER_LENGTH + 5)]);
    guest.driver.kick(1);
    assert_eq!(read_exactly(&host, 5), b"whole");
    guest.driver.wait_used(1);
    let table = at + 0x1000;
    let parts: [Fields; 2] = [
        (at, HEADER_LENGTH, 1, 1),
        (at + u64::from(HEADER_LENGTH), 5, 0, 0),
    ];
    guest.driver.set_table(table, &parts);
    guest.driver.offer(1, &[(table, 32, INDIRECT, 0)]);
    guest.driver.kick(1);
    assert_eq!(read_exactly(&host, 5), b"whole");
}

#[test]
fn survives_random_operations() {
    if !is_confined("virtio::vsock::tests::malformed::survives_random_operations") {
        return;
    }
    let mut guest = Guest::new();
    let template = guest.packet(0, 0);
    let connected = &guest.connected;
    let mut hosts = Vec::new();
    hammer(&mut guest.driver, &mut guest.device, |prng| {
        while let Ok((_, stream)) = connected.try_recv() {
            // Fails if the device has closed the connection.
            let _ = (&stream).write_all(b"hello");
            hosts.push(stream);
        }
        if prng.below(64) == 0 {
            hosts.clear();
        }
        random_packet(prng, &template)
    });
    // Those that the guest opened last; the reset has closed them.
    while guest.connected.try_recv().is_ok() {}
    guest.activate();
    let host = guest.connect(7);
    guest.send_data(7, b"alive");
    assert_eq!(read_exactly(&host, 5), b"alive");
}

/// A packet with at most one field that Linux would not send.
fn random_packet(prng: &mut Prng, template: &RawHeader) -> Vec<u8> {
    let mut header = template.clone();
    header.op = prng.small(9);
    header.dst_port = 7 + prng.below(4) as u32;
    header.len = prng.below(300) as u32;
    header.flags = prng.below(4) as u32;
    let mut bytes = header.bytes();
    if prng.below(8) == 0 {
        bytes[prng.below(u64::from(HEADER_LENGTH)) as usize] = prng.next() as u8;
    }
    bytes.resize((HEADER_LENGTH + header.len) as usize, 0xaa);
    bytes
}

#[test]
fn data_beyond_the_credit_resets_the_connection() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let chunk = vec![1; 64 * 1024];
    let mut refused = false;
    for _ in 0..64 {
        guest.send_data(7, &chunk);
        if let Some(used) = guest.driver.take_used(0) {
            let (header, _) = guest.take(used);
            if header.op == RST {
                refused = true;
                break;
            }
        }
    }
    assert!(
        refused,
        "4 MiB were accepted from a guest that had credit for 256 KiB"
    );
    drop(host);
    guest.send(REQUEST, 8);
    // Packets sent after the RST belong to no connection.
    loop {
        let (header, _) = guest.receive();
        if header.op == RESPONSE {
            break;
        }
        assert_eq!((header.op, header.src_port), (RST, 7));
    }
}

#[test]
fn a_guest_with_contradictory_credit_gets_no_data() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.fwd_cnt = 0xffff_0000;
    guest.buf_alloc = 0;
    guest.send(CREDIT_UPDATE, 7);
    (&host).write_all(b"x").unwrap();
    guest.assert_quiet(7);
}
