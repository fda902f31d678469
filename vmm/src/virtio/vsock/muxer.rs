//! The muxer: all connections of a guest over two queues. It runs on the device's worker, which calls [`Muxer`] with
//! what the guest sent, what the host's streams are ready for, and room for packets. Every table here is bounded.
//!
//! A packet from the guest: pop → parse → find the connection → its state's act → used. A packet to the guest: the
//! connections that have something stand in a round; each in its turn fills one receive buffer, straight from its
//! stream. Replies to what is no connection come first.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::connection::Connection;
use super::greeting::{Greeted, Greeting};
use super::packet::{Header, Op, Packet, Ports, Refusal, Reset, Slice, encode_reset, parse, unknown};
use super::state::{Act, Event, State};
use super::{Host, MAX_CONNECTIONS};
use crate::virtio::worker::Poller;

/// Most replies that wait for receive buffers; a guest that gives none loses the rest.
const MAX_RESETS: usize = 256;
/// Most streams that were accepted by hand and have not said which port they want.
const MAX_GREETINGS: usize = 16;
/// Ports of the host for connections into the guest start here.
const FIRST_DIALLED: u32 = 0x8000_0000;

/// See the module.
pub struct Muxer {
    host: Box<dyn Host>,
    connections: BTreeMap<u64, Connection>,
    by_ports: BTreeMap<Ports, u64>,
    greetings: BTreeMap<u64, Greeting>,
    round: VecDeque<u64>,
    resets: VecDeque<Reset>,
    next_id: u64,
    next_port: u32,
}

impl Muxer {
    /// Without connections; `first_id` and upwards are the tokens that it registers.
    pub fn new(host: Box<dyn Host>, first_id: u64) -> Self {
        Self {
            host,
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            greetings: BTreeMap::new(),
            round: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: first_id,
            next_port: FIRST_DIALLED,
        }
    }

    /// Ends everything; tokens are not used again.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.greetings.clear();
        self.round.clear();
        self.resets.clear();
    }

    /// Whether the guest is to get a packet.
    pub fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.round.is_empty()
    }

    /// Writes the next packet for the guest and gives its length; None where there was none after all.
    pub fn next_packet(&mut self, packet: &mut Packet<'_>) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            let header = encode_reset(&reset);
            packet.set_header_from_raw(&header).ok()?;
            return u32::try_from(header.len()).ok();
        }
        while let Some(id) = self.round.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.in_round = false;
            let written = connection.next_packet(packet);
            self.enter_round(id);
            if written.is_some() {
                return written;
            }
        }
        None
    }

    fn enter_round(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.in_round
            && connection.has_something()
        {
            connection.in_round = true;
            self.round.push_back(id);
        }
    }

    fn reset(&mut self, reset: Reset) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// A packet from the guest.
    pub fn receive(&mut self, packet: &Packet<'_>, poller: &Poller) {
        match parse(packet) {
            Ok(header) => self.dispatch(&header, packet.data_slice(), poller),
            Err(Refusal::Drop) => {}
            Err(Refusal::Reset(reset)) => self.reset(reset),
        }
    }

    fn dispatch(&mut self, header: &Header, data: Option<&Slice<'_>>, poller: &Poller) {
        let Some(id) = self.by_ports.get(&header.ports).copied() else {
            return self.without_connection(header, poller);
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.credit.learn(header.buf_alloc, header.fwd_cnt);
        let event = match header.op {
            Op::Data if !connection.credit.receive(header.length) => {
                return self.end(id, Act::ResetAndDrop);
            }
            Op::Data => Event::Data,
            Op::Request => Event::Request,
            Op::Response => Event::Response,
            Op::Reset => Event::Reset,
            Op::Shutdown(halves) => Event::Shutdown(halves),
            Op::CreditRequest => {
                connection.owe_update();
                return self.enter_round(id);
            }
            Op::CreditUpdate => return self.enter_round(id),
        };
        match (connection.take(event), data) {
            (Act::Deliver, Some(data)) => {
                if connection.deliver(data).is_err() {
                    connection.take(Event::HostDeaf);
                }
            }
            (Act::Discard, _) => connection.credit.forward(header.length),
            (act @ (Act::Drain | Act::ResetAndDrain | Act::ResetAndDrop), _) => return self.end(id, act),
            (Act::Deliver | Act::Nothing | Act::Connected | Act::CloseHost(_) | Act::TellShutdown(_), _) => {}
        }
        self.settle(id, poller);
    }

    fn without_connection(&mut self, header: &Header, poller: &Poller) {
        match header.op {
            Op::Request => {
                if self.accept(header, poller).is_none() {
                    self.reset(unknown(header.ports));
                }
            }
            // No reply to a reset, or two sides could go on forever.
            Op::Reset => {}
            Op::Response | Op::Shutdown(_) | Op::Data | Op::CreditUpdate | Op::CreditRequest => {
                self.reset(unknown(header.ports));
            }
        }
    }

    /// The guest opens a connection; None where it can't have one.
    fn accept(&mut self, header: &Header, poller: &Poller) -> Option<()> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        ours.set_nonblocking(true).ok()?;
        self.host.connect(header.ports, OwnedFd::from(theirs)).ok()?;
        let mut connection = Connection::new(header.ports, ours, Op::Response);
        connection.credit.learn(header.buf_alloc, header.fwd_cnt);
        self.insert(connection, poller)
    }

    fn insert(&mut self, connection: Connection, poller: &Poller) -> Option<()> {
        let id = self.fresh_id();
        poller.add(connection.stream(), id, interest(false)).ok()?;
        self.by_ports.insert(connection.ports, id);
        self.connections.insert(id, connection);
        self.enter_round(id);
        Some(())
    }

    fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    /// Forgets a connection that the guest knows no more; its backlog still goes to the host.
    fn end(&mut self, id: u64, act: Act) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.state = State::Ended;
        let ports = connection.ports;
        self.by_ports.remove(&ports);
        if act == Act::ResetAndDrop || !connection.has_backlog() {
            self.connections.remove(&id);
        }
        if act != Act::Drain {
            self.reset(unknown(ports));
        }
    }

    /// After something was done to a connection: waits for its stream where that is full, puts it into the round.
    fn settle(&mut self, id: u64, poller: &Poller) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.has_backlog() != connection.waiting {
            connection.waiting = connection.has_backlog();
            if poller
                .change(connection.stream(), id, interest(connection.waiting))
                .is_err()
            {
                return self.end(id, Act::ResetAndDrop);
            }
        }
        self.enter_round(id);
    }

    /// The stream of connection `id`, or a greeting's, is `ready`.
    pub fn on_stream(&mut self, id: u64, ready: EventSet, poller: &Poller) {
        if let Some(greeting) = self.greetings.remove(&id) {
            return self.greet(id, greeting, poller);
        }
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if readable(ready) {
            connection.readable = true;
        }
        if ready.contains(EventSet::OUT) && connection.flush().is_err() || gone(ready) {
            let act = connection.take(Event::HostDeaf);
            if act == Act::ResetAndDrop {
                return self.end(id, act);
            }
        }
        if connection.state == State::Ended && (!connection.has_backlog() || gone(ready)) {
            self.connections.remove(&id);
            return;
        }
        self.settle(id, poller);
    }

    /// A stream was accepted by hand.
    pub fn greeted_by(&mut self, stream: UnixStream, poller: &Poller) {
        if self.greetings.len() >= MAX_GREETINGS || stream.set_nonblocking(true).is_err() {
            return;
        }
        let id = self.fresh_id();
        if poller.add(&stream, id, EventSet::IN).is_ok() {
            self.greetings.insert(id, Greeting::new(stream));
        }
    }

    fn greet(&mut self, id: u64, greeting: Greeting, poller: &Poller) {
        match greeting.proceed() {
            Greeted::Wait(greeting) => drop(self.greetings.insert(id, greeting)),
            Greeted::Nonsense => {}
            Greeted::Port(port, stream) => self.dial(port, stream, poller),
        }
    }

    /// Opens a connection into the guest.
    fn dial(&mut self, port: u32, stream: UnixStream, poller: &Poller) {
        if self.connections.len() >= MAX_CONNECTIONS || poller.remove(&stream).is_err() {
            return;
        }
        let ports = loop {
            let ports = Ports {
                guest: port,
                host: self.next_port,
            };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_DIALLED);
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        // Where it can't be waited for it is dropped, and whoever dialled sees the end.
        let _ = self.insert(Connection::new(ports, stream, Op::Request), poller);
    }
}

/// Edge-triggered: a connection remembers that it may read, so an idle or throttled one costs nothing.
fn interest(write: bool) -> EventSet {
    let read = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if write { read | EventSet::OUT } else { read }
}

fn readable(ready: EventSet) -> bool {
    gone(ready) || ready.intersects(EventSet::IN | EventSet::READ_HANG_UP)
}

fn gone(ready: EventSet) -> bool {
    ready.intersects(EventSet::HANG_UP | EventSet::ERROR)
}
