//! One connection: the host's stream, the bytes that the stream has not taken yet, and the packets that are
//! pending for the guest. Used by the muxer on the worker's thread. Data is copied once, between the stream
//! and guest memory, unless the stream is full. A write to a stream whose peer has closed returns EPIPE:
//! Rust's runtime ignores SIGPIPE.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use vm_memory::{ReadVolatile as _, VolatileMemoryError, VolatileSlice, WriteVolatile as _};

use super::buffers::Buffers;
use super::packet::{HEADER_LENGTH, Header, MAX_PAYLOAD, Op, Ports, ShutdownFlags, encode};
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
    pub fn deliver(&mut self, data: Buffers<'_>) -> Result<(), HostRxClosed> {
        let written = if self.backlog.is_empty() {
            self.write_data(data)?
        } else {
            0
        };
        for slice in data.after(written).into_iter().flat_map(Buffers::slices) {
            // The guest's credit bounds the backlog.
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            self.backlog.extend(bytes);
        }
        Ok(())
    }

    /// Writes `data` until the stream takes no more, and returns the number of bytes written.
    fn write_data(&mut self, data: Buffers<'_>) -> Result<u32, HostRxClosed> {
        let mut total = 0_u32;
        for slice in data.slices() {
            let mut rest = slice;
            while !rest.is_empty() {
                match (&self.stream).write_volatile(&rest) {
                    Ok(written) => {
                        let length = u32::try_from(written).unwrap_or(u32::MAX);
                        self.credit.forward(length);
                        total = total.saturating_add(length);
                        rest = rest.offset(written).map_err(|_| HostRxClosed)?;
                    }
                    Err(error) => match kind_of(&error) {
                        Some(ErrorKind::Interrupted) => {}
                        Some(ErrorKind::WouldBlock) => return Ok(total),
                        _ => {
                            self.credit.forward(data.len().saturating_sub(total));
                            return Err(HostRxClosed);
                        }
                    },
                }
            }
        }
        Ok(total)
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

    /// Writes the next packet to the receive buffer `packet`, which has room for a header and at least a byte
    /// of data, and returns its length; None if no packet is left to send.
    pub fn next_packet(&mut self, packet: Buffers<'_>) -> Option<u32> {
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
    fn read_payload(&mut self, packet: Buffers<'_>) -> u32 {
        let limit = self.credit.peer_free().min(MAX_PAYLOAD);
        let payload = packet
            .after(HEADER_LENGTH)
            .and_then(|payload| payload.first(payload.len().min(limit)));
        let mut total = 0_u32;
        for mut slice in payload.into_iter().flat_map(Buffers::slices) {
            let length = self.read_data(&mut slice, total == 0);
            total = total.saturating_add(u32::try_from(length).unwrap_or(0));
            if length < slice.len() {
                break;
            }
        }
        total
    }

    /// Reads from the stream into `slice` and returns the number of bytes; 0 if there was nothing to read.
    /// The end of the stream, or its error, counts only if `is_first`: otherwise the bytes that were read
    /// before are sent first, and the next read meets it again.
    fn read_data(&mut self, slice: &mut VolatileSlice<'_>, is_first: bool) -> usize {
        loop {
            match (&self.stream).read_volatile(slice) {
                Ok(0) if is_first => {
                    self.readable = false;
                    self.handle_event(ConnectionEvent::HostTxClosed);
                    return 0;
                }
                Ok(length) => return length,
                Err(error) => match kind_of(&error) {
                    Some(ErrorKind::Interrupted) => {}
                    Some(ErrorKind::WouldBlock) => {
                        self.readable = false;
                        return 0;
                    }
                    _ if !is_first => return 0,
                    _ => {
                        self.readable = false;
                        self.handle_event(ConnectionEvent::HostTxClosed);
                        self.handle_event(ConnectionEvent::HostRxClosed);
                        return 0;
                    }
                },
            }
        }
    }

    /// Writes the header of a packet with `length` bytes of payload. Every packet carries the current credit.
    fn write_header(&mut self, packet: Buffers<'_>, op: Op, length: u32) -> Option<u32> {
        self.pending.credit_update = false;
        let (buf_alloc, fwd_cnt) = self.credit.advertise();
        let header = encode(&Header {
            ports: self.ports,
            op,
            length,
            buf_alloc,
            fwd_cnt,
        });
        packet.write(&header)?;
        HEADER_LENGTH.checked_add(length)
    }
}

/// The kind of a failed system call; None for any other error.
fn kind_of(error: &VolatileMemoryError) -> Option<ErrorKind> {
    if let VolatileMemoryError::IOError(error) = error {
        return Some(error.kind());
    }
    None
}
