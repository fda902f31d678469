//! The device on in-memory guest RAM, with a guest that sends whatever it likes, and the tables of [`super::state`].
#![allow(clippy::cast_possible_truncation, reason = "sizes of a test guest are small")]

mod malformed;
mod streams;

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use virtio_vsock::packet::PKT_HEADER_SIZE;

use super::packet::Shut;
use super::state::{Act, BUFFER, Event, State};
use super::*;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, Prng, passes_confined, readable, writable};

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// Payload room of a receive buffer, as Linux has it.
const RX_BUFFER: u32 = 4096;
const TX_AREA: u64 = BUFFERS;
const RX_AREA: u64 = BUFFERS + (16 << 20);
/// Bytes for one packet in either area.
const SLOT: u64 = 128 * 1024;

/// A packet, every field as it stands on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wire {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Wire {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    fn read(b: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(b[at..at + 2].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }
}

struct Taker(Sender<(u32, UnixStream)>);

impl Host for Taker {
    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused> {
        if ports.host == 99 {
            return Err(Refused);
        }
        self.0
            .send((ports.host, UnixStream::from(stream)))
            .map_err(|_| Refused)
    }
}

/// A guest with one way of counting credit: it has read everything at once unless told otherwise.
struct Guest {
    driver: Driver,
    device: Vsock,
    connected: Receiver<(u32, UnixStream)>,
    free_tx: Vec<u64>,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Guest {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(listener: Option<UnixListener>) -> Self {
        let driver = Driver::new(QUEUE_SIZES);
        let (sender, connected) = channel();
        let config = Config {
            host: Box::new(Taker(sender)),
            listener,
        };
        let device = Vsock::new(config, &driver.env()).unwrap();
        let mut guest = Self {
            driver,
            device,
            connected,
            free_tx: Vec::new(),
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        };
        guest.activate();
        guest
    }

    fn activate(&mut self) {
        self.device
            .activate(self.driver.activation(self.device.features()))
            .unwrap();
        self.free_tx = (0..60).map(|slot| TX_AREA + slot * SLOT).collect();
        for slot in 0..60 {
            let at = RX_AREA + slot * SLOT;
            self.driver
                .offer(0, &[writable(at, RX_BUFFER + PKT_HEADER_SIZE as u32)]);
        }
        self.driver.kick_if_wanted(0);
    }

    fn restart(&mut self) {
        self.device.reset().unwrap();
        self.driver.restart();
        self.activate();
    }

    fn packet(&self, op: u16, port: u32) -> Wire {
        Wire {
            src_cid: 3,
            dst_cid: 2,
            src_port: 5000,
            dst_port: port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Puts a packet into the queue and waits until the device has taken it.
    fn send_wire(&mut self, wire: &Wire, payload: &[u8]) {
        let at = self.free_tx.pop().unwrap();
        self.driver.set_bytes(at, &wire.bytes());
        self.driver.set_bytes(at + 64, payload);
        let mut buffers = vec![readable(at, PKT_HEADER_SIZE as u32)];
        if !payload.is_empty() {
            buffers.push(readable(at + 64, payload.len() as u32));
        }
        self.driver.offer(1, &buffers);
        self.driver.kick_if_wanted(1);
        assert_eq!(self.driver.wait_used(1).1, 0);
        self.free_tx.push(at);
    }

    fn send(&mut self, op: u16, port: u32) {
        self.send_wire(&self.packet(op, port), &[]);
    }

    fn send_data(&mut self, port: u32, payload: &[u8]) {
        let mut wire = self.packet(RW, port);
        wire.len = payload.len() as u32;
        self.send_wire(&wire, payload);
    }

    fn shut(&mut self, port: u32, flags: u32) {
        let mut wire = self.packet(SHUTDOWN, port);
        wire.flags = flags;
        self.send_wire(&wire, &[]);
    }

    fn take(&mut self, (head, length): (u16, u32)) -> (Wire, Vec<u8>) {
        let at = RX_AREA + u64::from(self.slot_of(head)) * SLOT;
        let bytes = self.driver.bytes(at, length as usize);
        let wire = Wire::read(&bytes);
        assert_eq!(wire.len as usize + PKT_HEADER_SIZE, bytes.len(), "{wire:?}");
        assert_eq!((wire.dst_cid, wire.src_cid), (3, 2), "{wire:?}");
        self.driver
            .offer(0, &[writable(at, RX_BUFFER + PKT_HEADER_SIZE as u32)]);
        self.driver.kick_if_wanted(0);
        if wire.op == RW {
            self.fwd_cnt = self.fwd_cnt.wrapping_add(wire.len);
        }
        (wire, bytes[PKT_HEADER_SIZE..].to_vec())
    }

    fn slot_of(&self, head: u16) -> u16 {
        let address = self.driver.descriptor_address(0, head);
        ((address - RX_AREA) / SLOT) as u16
    }

    /// Waits for the next packet.
    fn receive(&mut self) -> (Wire, Vec<u8>) {
        let used = self.driver.wait_used(0);
        self.take(used)
    }

    fn receive_op(&mut self) -> u16 {
        self.receive().0.op
    }

    /// Receives `length` bytes of data, telling of room as it goes.
    fn receive_data(&mut self, port: u32, length: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut told = 0;
        while data.len() < length {
            let (wire, bytes) = self.receive();
            assert_eq!(wire.op, RW, "{wire:?}");
            data.extend(bytes);
            if data.len() - told > 64 * 1024 {
                told = data.len();
                self.send(CREDIT_UPDATE, port);
            }
        }
        data
    }

    /// Nothing is on its way to the guest: the device answers a credit request of `port` with nothing before it.
    fn is_quiet(&mut self, port: u32) {
        self.send(CREDIT_REQUEST, port);
        assert_eq!(self.receive_op(), CREDIT_UPDATE);
    }

    /// Opens a connection to `port`; the host's end has time-outs.
    fn connect(&mut self, port: u32) -> UnixStream {
        self.send(REQUEST, port);
        let (wire, _) = self.receive();
        assert_eq!(
            (wire.op, wire.src_port, wire.dst_port, wire.kind),
            (RESPONSE, port, 5000, 1)
        );
        assert_eq!(wire.buf_alloc, BUFFER);
        let (dialled, stream) = self.connected.recv_timeout(DEADLINE).unwrap();
        assert_eq!(dialled, port);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

fn pattern(length: usize) -> Vec<u8> {
    let mut prng = Prng(length as u64 + 1);
    (0..length).map(|_| prng.next() as u8).collect()
}

fn read_exactly(mut stream: &UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn at_end(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn the_table_of_states() {
    let open = |guest, host| State::Open { guest, host };
    let cases = [
        (State::Dialing, Event::Response, State::OPEN, Act::Connected),
        (State::Dialing, Event::Reset, State::Ended, Act::Drain),
        (State::Dialing, Event::Data, State::Ended, Act::ResetAndDrop),
        (State::Dialing, Event::HostDeaf, State::Ended, Act::ResetAndDrop),
        (State::Dialing, Event::HostSilent, State::Dialing, Act::Nothing),
        (State::OPEN, Event::Data, State::OPEN, Act::Deliver),
        (State::OPEN, Event::Response, State::Ended, Act::ResetAndDrop),
        (State::OPEN, Event::Request, State::Ended, Act::ResetAndDrop),
        (State::OPEN, Event::Reset, State::Ended, Act::Drain),
        (
            State::OPEN,
            Event::Shutdown(Shut::NONE),
            State::OPEN,
            Act::Nothing,
        ),
        (
            State::OPEN,
            Event::Shutdown(Shut::SEND),
            open(Shut::SEND, Shut::NONE),
            Act::CloseHost(Shut::SEND),
        ),
        (
            State::OPEN,
            Event::Shutdown(Shut::BOTH),
            State::Ended,
            Act::ResetAndDrain,
        ),
        (
            open(Shut::SEND, Shut::NONE),
            Event::Shutdown(Shut::RECEIVE),
            State::Ended,
            Act::ResetAndDrain,
        ),
        (
            open(Shut::SEND, Shut::NONE),
            Event::Shutdown(Shut::SEND),
            open(Shut::SEND, Shut::NONE),
            Act::Nothing,
        ),
        (
            open(Shut::SEND, Shut::NONE),
            Event::Data,
            State::Ended,
            Act::ResetAndDrop,
        ),
        (
            open(Shut::NONE, Shut::RECEIVE),
            Event::Data,
            open(Shut::NONE, Shut::RECEIVE),
            Act::Discard,
        ),
        (
            State::OPEN,
            Event::HostSilent,
            open(Shut::NONE, Shut::SEND),
            Act::TellShutdown(Shut::SEND),
        ),
        (
            open(Shut::NONE, Shut::SEND),
            Event::HostDeaf,
            open(Shut::NONE, Shut::BOTH),
            Act::TellShutdown(Shut::BOTH),
        ),
        (
            open(Shut::NONE, Shut::SEND),
            Event::HostSilent,
            open(Shut::NONE, Shut::SEND),
            Act::Nothing,
        ),
        (State::Ended, Event::Data, State::Ended, Act::Nothing),
    ];
    for (state, event, next, act) in cases {
        assert_eq!(state.next(event), (next, act), "{state:?} {event:?}");
    }
}

#[test]
fn streams_work_confined() {
    passes_confined("virtio::vsock::tests::streams::");
}
