//! Connections that the host does not expect, with the host side that the shim's VMM has.

use std::fs::File;
use std::os::fd::IntoRawFd as _;

use nacre_protocol::control::{Channel, FromVmm, socket_pair};
use nacre_protocol::stream_table::{StreamTable, TABLE_BYTES};
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd as _;

use super::*;
use crate::control::Control;

/// A guest, the shim's end of the control socket, and the shim's stream table.
fn guest() -> (Guest, Channel, StreamTable) {
    let (shim, vmm) = socket_pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(TABLE_BYTES).unwrap();
    let table = |file: &File| StreamTable::new(file.try_clone().unwrap());
    let host = Control::new(vmm.into_raw_fd()).connection_sender(table(&file));
    (Guest::with_host(Box::new(host)), Channel::new(shim), table(&file))
}

fn request(guest: &mut Guest, host_port: u32, guest_port: u32) {
    let mut header = guest.packet(REQUEST, host_port);
    header.src_port = guest_port;
    guest.send_packet(&header, &[]);
}

/// Receives a message in the shim's place, which must be a connection between these ports; returns its
/// stream.
fn connection(shim: &Channel, host_port: u32, guest_port: u32) -> Vec<OwnedFd> {
    let (message, stream) = shim.receive::<FromVmm>().unwrap();
    let expected = FromVmm::Connection {
        host_port,
        guest_port,
    };
    assert_eq!(message, expected);
    stream
}

fn is_silent(shim: &Channel) -> bool {
    let received = recv(
        shim.as_raw_fd(),
        &mut [0],
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK,
    );
    received == Err(nix::Error::EAGAIN)
}

#[test]
fn a_hundred_thousand_strangers_are_refused_without_a_message() {
    let (mut guest, shim, table) = guest();
    request(&mut guest, AGENT_PORT, 1);
    assert_eq!(guest.receive_op(), RESPONSE);
    let _agent = connection(&shim, AGENT_PORT, 1);
    let secret = StreamAddress {
        host_port: 0x1234_5678,
        guest_port: 0x9abc_def0,
    };
    table.insert(secret).unwrap();
    let mut prng = Prng(1);
    for _ in 0..2000 {
        let strangers: Vec<RawHeader> = (0..50)
            .map(|n| {
                let bits = prng.next();
                let (host_port, guest_port) = match n % 4 {
                    0 => (AGENT_PORT, bits as u32 | 1 << 16),
                    1 => (secret.host_port, bits as u32 | 1),
                    2 => (bits as u32 | 1, secret.guest_port),
                    _ => ((bits >> 32) as u32, bits as u32 | 1),
                };
                let mut header = guest.packet(REQUEST, host_port);
                header.src_port = guest_port;
                header
            })
            .collect();
        guest.send_requests(&strangers);
        for stranger in &strangers {
            let (header, _) = guest.receive();
            assert_eq!((header.op, header.dst_port), (RST, stranger.src_port));
        }
    }
    assert!(is_silent(&shim), "the shim heard of a stranger");
    request(&mut guest, secret.host_port, secret.guest_port);
    assert_eq!(guest.receive_op(), RESPONSE);
    let _stream = connection(&shim, secret.host_port, secret.guest_port);
}

#[test]
fn an_address_that_was_removed_is_refused() {
    let (mut guest, shim, table) = guest();
    let (host_port, guest_port) = (0x1_0000, 0x1_0000);
    let address = StreamAddress {
        host_port,
        guest_port,
    };
    table.insert(address).unwrap();
    request(&mut guest, host_port, guest_port);
    assert_eq!(guest.receive_op(), RESPONSE);
    drop(connection(&shim, host_port, guest_port));
    // The shim closed its end.
    assert_eq!(guest.receive_op(), SHUTDOWN);
    let mut reset = guest.packet(RST, host_port);
    reset.src_port = guest_port;
    guest.send_packet(&reset, &[]);
    table.remove(address).unwrap();
    request(&mut guest, host_port, guest_port);
    assert_eq!(guest.receive_op(), RST);
    assert!(is_silent(&shim));
}
