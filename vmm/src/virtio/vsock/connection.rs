//! One connection: the host's stream, the bytes that the stream has not taken yet, and the packets that are
//! pending for the guest. Used by the muxer on the worker's thread. Data is copied once, between the stream
//! and guest memory, unless the stream is full. A write to a stream whose peer has closed returns EPIPE:
//! Rust's runtime ignores SIGPIPE.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use vm_memory::{ReadVolatile as _, VolatileMemoryError, WriteVolatile as _};

use super::packet::{Header, MAX_PAYLOAD, Op, Packet, Ports, ShutdownFlags, Slice, encode};
use super::state::{Action, ConnectionEvent, ConnectionState, Credit};

/// The host's stream accepts no more data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRxClosed;

/// A connection between a port of the guest and a stream of the host.
#[derive(Debug)]
pub struct Connection {
    /// Its ports, which identify it.
    pub ports: Ports,
    /// Its state, as of the last event.
    pub state: ConnectionState,
    /// Its flow control.
    pub credit: Credit,
    /// The stream may have data to read. Set by epoll, cleared when a read would block.
    pub readable: bool,
    /// epoll waits for the stream to become writable.
    pub waits_for_writable: bool,
    /// It is in the muxer's queue of connections with a packet for the guest.
    pub is_queued: bool,
    stream: UnixStream,
    /// Bytes from the guest that the stream has not taken, at most [`super::state::BUF_ALLOC`].
    backlog: VecDeque<u8>,
    /// The stream must be shut down for writing once the backlog was written.
    shutdown_after_backlog: bool,
    pending: Pending,
}

/// Packets that the guest must get, other than data.
#[derive(Debug, Default)]
struct Pending {
    /// REQUEST or RESPONSE.
    opening: Option<Op>,
    /// The flags of a SHUTDOWN; NONE for no packet.
    shutdown: ShutdownFlags,
    /// The guest sent a CREDIT_REQUEST.
    credit_update: bool,
}

impl Connection {
    /// A connection over `stream` (non-blocking), whose first packet to the guest is `opening`: REQUEST or
    /// RESPONSE.
    pub fn new(ports: Ports, stream: UnixStream, opening: Op) -> Self {
        let state = if opening == Op::Request {
            ConnectionState::Connecting
        } else {
            ConnectionState::OPEN
        };
        Self {
            ports,
            state,
            credit: Credit::default(),
            readable: false,
            waits_for_writable: false,
            is_queued: false,
            stream,
            backlog: VecDeque::new(),
            shutdown_after_backlog: false,
            pending: Pending {
                opening: Some(opening),
                ..Pending::default()
            },
        }
    }

    /// The host's stream, to register it with epoll.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether bytes from the guest wait for the stream.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether a packet can be sent to the guest. Data counts if the stream may be readable, so that
    /// [`Connection::next_packet`] may still find none.
    pub fn has_packet(&self) -> bool {
        self.state != ConnectionState::Closed
            && (self.pending.opening.is_some()
                || self.pending.shutdown != ShutdownFlags::NONE
                || self.pending.credit_update
                || self.credit.update_is_due()
                || self.can_read())
    }

    fn can_read(&self) -> bool {
        self.readable && self.state.may_send() && self.credit.peer_free() > 0
    }

    /// The guest sent CREDIT_REQUEST.
    pub fn request_credit_update(&mut self) {
        self.pending.credit_update = true;
    }

    /// Changes the state and carries out the part of the action that concerns only this connection. The
    /// caller does the rest: RST, removal, data.
    pub fn handle_event(&mut self, event: ConnectionEvent) -> Action {
        let (state, action) = self.state.next(event);
        self.state = state;
        match action {
            Action::SendShutdown(flags) => self.pending.shutdown = self.pending.shutdown.union(flags),
            Action::ShutDownHost(flags) => {
                if flags.contains(ShutdownFlags::RECEIVE) {
                    // Fails only if the host has closed the stream.
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                if flags.contains(ShutdownFlags::SEND) {
                    self.shut_down_after_backlog();
                }
            }
            Action::Drain | Action::ResetAndDrain => self.shut_down_after_backlog(),
            Action::SendConnectOk => self.write_connect_ok(),
            Action::ResetAndDrop => self.backlog.clear(),
            Action::Nothing | Action::Deliver | Action::Discard => {}
        }
        action
    }

    /// Writes the `OK` line to the client that connected through the listener.
    fn write_connect_ok(&mut self) {
        // Nothing was written before, so the line fits. If the client has closed the stream, the next event
        // says so.
        let _ = rustix::io::write(&self.stream, format!("OK {}\n", self.ports.host).as_bytes());
    }

    fn shut_down_after_backlog(&mut self) {
        self.shutdown_after_backlog = true;
        self.shut_down_if_drained();
    }

    fn shut_down_if_drained(&mut self) {
        if self.shutdown_after_backlog && self.backlog.is_empty() {
            // Fails only if the host has closed the stream.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Writes `data`, for which the guest had credit, to the stream; what does not fit goes to the backlog.
    pub fn deliver(&mut self, data: &Slice<'_>) -> Result<(), HostRxClosed> {
        let mut rest = data.offset(0).map_err(|_| HostRxClosed)?;
        while self.backlog.is_empty() && !rest.is_empty() {
            match (&self.stream).write_volatile(&rest) {
                Ok(written) => {
                    self.credit.forward(u32::try_from(written).unwrap_or(u32::MAX));
                    rest = rest.offset(written).map_err(|_| HostRxClosed)?;
                }
                Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.credit.forward(u32::try_from(rest.len()).unwrap_or(u32::MAX));
                    return Err(HostRxClosed);
                }
            }
        }
        if !rest.is_empty() {
            // The guest's credit bounds the backlog.
            let mut bytes = vec![0; rest.len()];
            rest.copy_to(&mut bytes);
            self.backlog.extend(bytes);
        }
        Ok(())
    }

    /// Writes as much of the backlog as the stream takes.
    pub fn flush(&mut self) -> Result<(), HostRxClosed> {
        while !self.backlog.is_empty() {
            let (first, _) = self.backlog.as_slices();
            match rustix::io::write(&self.stream, first) {
                Ok(written) => {
                    self.backlog.drain(..written.min(first.len()));
                    self.credit.forward(u32::try_from(written).unwrap_or(u32::MAX));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => {
                    self.discard_backlog();
                    return Err(HostRxClosed);
                }
            }
        }
        // Frees the buffer: a connection without a backlog holds no memory for one.
        self.backlog = VecDeque::new();
        self.shut_down_if_drained();
        Ok(())
    }

    fn discard_backlog(&mut self) {
        self.credit
            .forward(u32::try_from(self.backlog.len()).unwrap_or(u32::MAX));
        self.backlog = VecDeque::new();
    }

    /// Writes the next packet to the guest's buffer and returns its length; None if no packet is left to
    /// send.
    pub fn next_packet(&mut self, packet: &mut Packet<'_>) -> Option<u32> {
        if self.state == ConnectionState::Closed {
            return None;
        }
        if let Some(op) = self.pending.opening.take() {
            return self.write_header(packet, op, 0);
        }
        if self.can_read() {
            let length = self.read_payload(packet);
            if length > 0 {
                self.credit.send(length);
                return self.write_header(packet, Op::Rw, length);
            }
        }
        if self.pending.shutdown != ShutdownFlags::NONE {
            let flags = std::mem::take(&mut self.pending.shutdown);
            return self.write_header(packet, Op::Shutdown(flags), 0);
        }
        if self.pending.credit_update || self.credit.update_is_due() {
            return self.write_header(packet, Op::CreditUpdate, 0);
        }
        None
    }

    /// Reads from the stream into the packet's payload; 0 if there was nothing to read.
    fn read_payload(&mut self, packet: &Packet<'_>) -> u32 {
        let Some(payload) = packet.data_slice() else {
            return 0;
        };
        let limit = usize::try_from(self.credit.peer_free().min(MAX_PAYLOAD)).unwrap_or(usize::MAX);
        let Ok(mut payload) = payload.subslice(0, payload.len().min(limit)) else {
            return 0;
        };
        if payload.is_empty() {
            return 0;
        }
        loop {
            match (&self.stream).read_volatile(&mut payload) {
                Ok(0) => {
                    self.readable = false;
                    self.handle_event(ConnectionEvent::HostTxClosed);
                    return 0;
                }
                Ok(length) => return u32::try_from(length).unwrap_or(0),
                Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return 0;
                }
                Err(_) => {
                    self.readable = false;
                    self.handle_event(ConnectionEvent::HostTxClosed);
                    self.handle_event(ConnectionEvent::HostRxClosed);
                    return 0;
                }
            }
        }
    }

    /// Writes the header of a packet with `length` bytes of payload. Every packet carries the current credit.
    fn write_header(&mut self, packet: &mut Packet<'_>, op: Op, length: u32) -> Option<u32> {
        self.pending.credit_update = false;
        let (buf_alloc, fwd_cnt) = self.credit.advertise();
        let header = encode(&Header {
            ports: self.ports,
            op,
            length,
            buf_alloc,
            fwd_cnt,
        });
        packet.set_header_from_raw(&header).ok()?;
        u32::try_from(header.len()).ok()?.checked_add(length)
    }
}
