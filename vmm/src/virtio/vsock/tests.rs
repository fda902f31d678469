//! The device on in-memory guest RAM, with a guest that sends any packet, valid or not.
#![allow(clippy::cast_possible_truncation, reason = "sizes of a test guest are small")]

mod framing;
mod malformed;
mod restored;
mod state;
mod strangers;
mod streams;

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::packet::{HEADER_BYTES, HEADER_LENGTH};
use super::state::BUF_ALLOC;
use super::*;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, Prng, assert_passes_confined, readable, writable};

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// Payload bytes of a receive buffer, as in Linux.
const RX_BUFFER: u32 = 4096;
const TX_AREA: u64 = BUFFERS;
const RX_AREA: u64 = BUFFERS + (16 << 20);
/// Bytes per packet in either area.
const SLOT: u64 = 128 * 1024;

/// A packet header with the fields of virtio 1.2, 5.10.6, without checks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RawHeader {
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

impl RawHeader {
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

    fn parse(bytes: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
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

/// Refuses port 99; passes every other port and its stream to the test.
struct TestHost(Sender<(u32, UnixStream)>);

impl Host for TestHost {
    fn expects(&mut self, _ports: Ports) -> bool {
        true
    }

    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused> {
        if ports.host == 99 {
            return Err(Refused);
        }
        self.0
            .send((ports.host, UnixStream::from(stream)))
            .map_err(|_| Refused)
    }
}

/// A guest whose packets come from port 5000. It counts received data as read at once.
struct Guest {
    driver: Driver,
    device: Device,
    connected: Receiver<(u32, UnixStream)>,
    /// Addresses of free slots for packets to send.
    free_tx: Vec<u64>,
    /// `buf_alloc` and `fwd_cnt` of the packets that it sends.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Guest {
    fn new() -> Self {
        Self::with_listener(None)
    }

    fn with_listener(listener: Option<UnixListener>) -> Self {
        let (sender, connected) = channel();
        let host = Box::new(TestHost(sender));
        Self::with_config(Config { host, listener }, connected)
    }

    /// A guest whose connections `host` gets.
    fn with_host(host: Box<dyn Host>) -> Self {
        let config = Config { host, listener: None };
        Self::with_config(config, channel().1)
    }

    fn with_config(config: Config, connected: Receiver<(u32, UnixStream)>) -> Self {
        let driver = Driver::new(QUEUE_SIZES);
        let device = spawn(config, &driver.env()).unwrap();
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
            self.driver.offer(0, &[writable(at, RX_BUFFER + HEADER_LENGTH)]);
        }
        self.driver.kick_if_wanted(0);
    }

    fn restart(&mut self) {
        self.device.reset().unwrap();
        self.driver.restart();
        self.activate();
    }

    /// A packet to the host's `port` without payload.
    fn packet(&self, op: u16, port: u32) -> RawHeader {
        RawHeader {
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

    /// Sends a packet and waits until the device has used its buffers.
    fn send_packet(&mut self, header: &RawHeader, payload: &[u8]) {
        let at = self.free_tx.pop().unwrap();
        self.driver.set_bytes(at, &header.bytes());
        self.driver.set_bytes(at + 64, payload);
        let mut buffers = vec![readable(at, HEADER_LENGTH)];
        if !payload.is_empty() {
            buffers.push(readable(at + 64, payload.len() as u32));
        }
        self.driver.offer(1, &buffers);
        self.driver.kick_if_wanted(1);
        assert_eq!(self.driver.wait_used(1).1, 0);
        self.free_tx.push(at);
    }

    /// Sends packets without payload, with one kick; waits until the device has used their buffers.
    fn send_requests(&mut self, headers: &[RawHeader]) {
        let slots = self.free_tx.split_off(self.free_tx.len() - headers.len());
        for (at, header) in slots.iter().zip(headers) {
            self.driver.set_bytes(*at, &header.bytes());
            self.driver.offer(1, &[readable(*at, HEADER_LENGTH)]);
        }
        self.driver.kick_if_wanted(1);
        for _ in &slots {
            assert_eq!(self.driver.wait_used(1).1, 0);
        }
        self.free_tx.extend(slots);
    }

    fn send(&mut self, op: u16, port: u32) {
        self.send_packet(&self.packet(op, port), &[]);
    }

    fn send_data(&mut self, port: u32, payload: &[u8]) {
        let mut header = self.packet(RW, port);
        header.len = payload.len() as u32;
        self.send_packet(&header, payload);
    }

    fn shut_down(&mut self, port: u32, flags: u32) {
        let mut header = self.packet(SHUTDOWN, port);
        header.flags = flags;
        self.send_packet(&header, &[]);
    }

    /// Reads the packet in a used receive buffer, and offers the buffer again.
    fn take(&mut self, (head, length): (u16, u32)) -> (RawHeader, Vec<u8>) {
        let at = RX_AREA + u64::from(self.slot_of(head)) * SLOT;
        let bytes = self.driver.bytes(at, length as usize);
        let header = RawHeader::parse(&bytes);
        assert_eq!(header.len as usize + HEADER_BYTES, bytes.len(), "{header:?}");
        assert_eq!((header.dst_cid, header.src_cid), (3, 2), "{header:?}");
        self.driver.offer(0, &[writable(at, RX_BUFFER + HEADER_LENGTH)]);
        self.driver.kick_if_wanted(0);
        if header.op == RW {
            self.fwd_cnt = self.fwd_cnt.wrapping_add(header.len);
        }
        (header, bytes[HEADER_BYTES..].to_vec())
    }

    fn slot_of(&self, head: u16) -> u16 {
        let address = self.driver.descriptor_address(0, head);
        ((address - RX_AREA) / SLOT) as u16
    }

    /// Waits for the next packet.
    fn receive(&mut self) -> (RawHeader, Vec<u8>) {
        let used = self.driver.wait_used(0);
        self.take(used)
    }

    fn receive_op(&mut self) -> u16 {
        self.receive().0.op
    }

    /// Receives `length` bytes of data, and sends credit updates in between.
    fn receive_data(&mut self, port: u32, length: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut advertised = 0;
        while data.len() < length {
            let (header, bytes) = self.receive();
            assert_eq!(header.op, RW, "{header:?}");
            data.extend(bytes);
            if data.len() - advertised > 64 * 1024 {
                advertised = data.len();
                self.send(CREDIT_UPDATE, port);
            }
        }
        data
    }

    /// Asserts that no packet is pending for the guest: the next one is the reply to a credit request for
    /// `port`.
    fn assert_quiet(&mut self, port: u32) {
        self.send(CREDIT_REQUEST, port);
        assert_eq!(self.receive_op(), CREDIT_UPDATE);
    }

    /// Opens a connection to `port` and returns the host's end, whose reads and writes time out.
    fn connect(&mut self, port: u32) -> UnixStream {
        self.send(REQUEST, port);
        let (header, _) = self.receive();
        assert_eq!(
            (header.op, header.src_port, header.dst_port, header.kind),
            (RESPONSE, port, 5000, 1)
        );
        assert_eq!(header.buf_alloc, BUF_ALLOC);
        let (connected, stream) = self.connected.recv_timeout(DEADLINE).unwrap();
        assert_eq!(connected, port);
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

fn assert_at_end(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn streams_work_confined() {
    assert_passes_confined("virtio::vsock::tests::streams::");
    assert_passes_confined("virtio::vsock::tests::framing::");
    assert_passes_confined("virtio::vsock::tests::strangers::an_address_that_was_removed_is_refused");
}
