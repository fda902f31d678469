//! One connection: the host's stream, what the stream did not take yet, and what the guest is owed. Used by the muxer
//! on the worker's thread. Data goes between stream and guest memory without a copy of ours, unless the stream is full.
//! A stream whose other end is gone answers EPIPE: Rust's runtime ignores SIGPIPE.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use vm_memory::{ReadVolatile as _, VolatileMemoryError, WriteVolatile as _};

use super::packet::{Header, MAX_PAYLOAD, Op, Packet, Ports, Shut, Slice, encode};
use super::state::{Act, Credit, Event, State};

/// The host's end takes no more data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deaf;

/// See the module.
#[derive(Debug)]
pub struct Connection {
    /// Its address.
    pub ports: Ports,
    /// Where it is.
    pub state: State,
    /// Flow control.
    pub credit: Credit,
    /// The stream may have something to read; false once it said that it has not.
    pub readable: bool,
    /// The worker waits for the stream to take more.
    pub waiting: bool,
    /// It stands in the muxer's round.
    pub in_round: bool,
    stream: UnixStream,
    backlog: VecDeque<u8>,
    /// No more data for the host follows the backlog.
    last: bool,
    owes: Owes,
}

/// Packets that the guest is to get beside data.
#[derive(Debug, Default)]
struct Owes {
    opening: Option<Op>,
    shutdown: Shut,
    update: bool,
}

impl Connection {
    /// A connection over `stream` (non-blocking), which the guest is to be told of by `opening`.
    pub fn new(ports: Ports, stream: UnixStream, opening: Op) -> Self {
        let state = if opening == Op::Request {
            State::Dialing
        } else {
            State::OPEN
        };
        Self {
            ports,
            state,
            credit: Credit::default(),
            readable: false,
            waiting: false,
            in_round: false,
            stream,
            backlog: VecDeque::new(),
            last: false,
            owes: Owes {
                opening: Some(opening),
                ..Owes::default()
            },
        }
    }

    /// The host's stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether bytes wait for the stream.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the guest is to get a packet now.
    pub fn has_something(&self) -> bool {
        self.state != State::Ended
            && (self.owes.opening.is_some()
                || self.owes.shutdown != Shut::NONE
                || self.owes.update
                || self.credit.update_is_due()
                || self.may_read())
    }

    fn may_read(&self) -> bool {
        self.readable && self.state.may_send() && self.credit.room() > 0
    }

    /// The guest asked for its credit.
    pub fn owe_update(&mut self) {
        self.owes.update = true;
    }

    /// Takes an event; what is about the guest or the stream alone is done here, the rest is the caller's.
    pub fn take(&mut self, event: Event) -> Act {
        let (state, act) = self.state.next(event);
        self.state = state;
        match act {
            Act::TellShutdown(flags) => self.owes.shutdown = self.owes.shutdown.with(flags),
            Act::CloseHost(halves) => {
                if halves.has(Shut::RECEIVE) {
                    // Fails only where the host has closed already.
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                if halves.has(Shut::SEND) {
                    self.end_after_backlog();
                }
            }
            Act::Drain | Act::ResetAndDrain => self.end_after_backlog(),
            Act::Connected => self.greet(),
            Act::ResetAndDrop => self.backlog.clear(),
            Act::Nothing | Act::Deliver | Act::Discard => {}
        }
        act
    }

    /// Tells who dialled by hand that the guest has answered.
    fn greet(&mut self) {
        // The stream is fresh and takes it; where its other end is gone, the next event tells.
        let _ = rustix::io::write(&self.stream, format!("OK {}\n", self.ports.host).as_bytes());
    }

    fn end_after_backlog(&mut self) {
        self.last = true;
        self.end_if_done();
    }

    fn end_if_done(&mut self) {
        if self.last && self.backlog.is_empty() {
            // Fails only where the host has closed already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Gives the host `data`, of which the guest had credit; what does not fit waits.
    pub fn deliver(&mut self, data: &Slice<'_>) -> Result<(), Deaf> {
        let mut rest = data.offset(0).map_err(|_| Deaf)?;
        while self.backlog.is_empty() && !rest.is_empty() {
            match (&self.stream).write_volatile(&rest) {
                Ok(written) => {
                    self.credit.forward(u32::try_from(written).unwrap_or(u32::MAX));
                    rest = rest.offset(written).map_err(|_| Deaf)?;
                }
                Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.credit.forward(u32::try_from(rest.len()).unwrap_or(u32::MAX));
                    return Err(Deaf);
                }
            }
        }
        if !rest.is_empty() {
            // Bounded by the guest's credit.
            let mut bytes = vec![0; rest.len()];
            rest.copy_to(&mut bytes);
            self.backlog.extend(bytes);
        }
        Ok(())
    }

    /// Gives the host of the backlog what it takes.
    pub fn flush(&mut self) -> Result<(), Deaf> {
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
                    return Err(Deaf);
                }
            }
        }
        // A connection without traffic holds no buffer.
        self.backlog = VecDeque::new();
        self.end_if_done();
        Ok(())
    }

    fn discard_backlog(&mut self) {
        self.credit
            .forward(u32::try_from(self.backlog.len()).unwrap_or(u32::MAX));
        self.backlog = VecDeque::new();
    }

    /// Writes the next packet for the guest; None where there is none after all.
    pub fn next_packet(&mut self, packet: &mut Packet<'_>) -> Option<u32> {
        if self.state == State::Ended {
            return None;
        }
        if let Some(op) = self.owes.opening.take() {
            return self.write(packet, op, 0);
        }
        if self.may_read() {
            let length = self.read(packet);
            if length > 0 {
                self.credit.send(length);
                return self.write(packet, Op::Data, length);
            }
        }
        if self.owes.shutdown != Shut::NONE {
            let flags = std::mem::take(&mut self.owes.shutdown);
            return self.write(packet, Op::Shutdown(flags), 0);
        }
        if self.owes.update || self.credit.update_is_due() {
            return self.write(packet, Op::CreditUpdate, 0);
        }
        None
    }

    /// Reads from the stream into the packet's payload; 0 where nothing came.
    fn read(&mut self, packet: &Packet<'_>) -> u32 {
        let Some(space) = packet.data_slice() else {
            return 0;
        };
        let room = usize::try_from(self.credit.room().min(MAX_PAYLOAD)).unwrap_or(usize::MAX);
        let Ok(mut space) = space.subslice(0, space.len().min(room)) else {
            return 0;
        };
        if space.is_empty() {
            return 0;
        }
        loop {
            match (&self.stream).read_volatile(&mut space) {
                Ok(0) => {
                    self.readable = false;
                    self.take(Event::HostSilent);
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
                    self.take(Event::HostSilent);
                    self.take(Event::HostDeaf);
                    return 0;
                }
            }
        }
    }

    /// Every packet tells of our buffer.
    fn write(&mut self, packet: &mut Packet<'_>, op: Op, length: u32) -> Option<u32> {
        self.owes.update = false;
        let (buf_alloc, fwd_cnt) = self.credit.tell();
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
