//! Multiplexes all connections of a guest over two queues. Runs on the device's worker, which passes in
//! packets from the guest, events of the host's streams, and receive buffers. Every table here is bounded.
//!
//! A packet from the guest: pop → parse → find the connection → its state's action → push. Packets to the
//! guest: connections that have a packet wait in a queue; the first one fills the next receive buffer, data
//! directly from its stream, and returns to the end of the queue. RSTs for packets without a connection are
//! sent first.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::buffers::Buffers;
use super::connection::Connection;
use super::handshake::{ConnectHandshake, HandshakeStep};
use super::packet::{
    HEADER_LENGTH, Header, MAX_PAYLOAD, Op, ParseError, Ports, Reset, encode_reset, parse, reset_for,
};
use super::state::{Action, ConnectionEvent, ConnectionState};
use super::{Host, MAX_CONNECTIONS};
use crate::virtio::worker::Poller;

/// Most RSTs that wait for receive buffers; further ones are dropped.
const MAX_RESETS: usize = 256;
/// Most clients of the standalone listener whose CONNECT line has not arrived.
const MAX_HANDSHAKES: usize = 16;
/// First port of the host for connections that the host opens.
const FIRST_HOST_PORT: u32 = 0x8000_0000;

/// The connections of one guest. A connection's ID is also its token in the [`Poller`].
pub struct Muxer {
    host: Box<dyn Host>,
    connections: BTreeMap<u64, Connection>,
    /// IDs of the connections that the guest knows. A connection with a backlog may outlive its entry.
    ids: BTreeMap<Ports, u64>,
    handshakes: BTreeMap<u64, ConnectHandshake>,
    /// IDs of connections that have a packet for the guest, in the order in which they get receive buffers.
    queue: VecDeque<u64>,
    resets: VecDeque<Reset>,
    next_id: u64,
    next_host_port: u32,
}

impl Muxer {
    /// No connections. IDs, and so tokens, count up from `first_id`.
    pub fn new(host: Box<dyn Host>, first_id: u64) -> Self {
        Self {
            host,
            connections: BTreeMap::new(),
            ids: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            queue: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: first_id,
            next_host_port: FIRST_HOST_PORT,
        }
    }

    /// Closes all connections. Their IDs are not used again, so late events match no connection.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.ids.clear();
        self.handshakes.clear();
        self.queue.clear();
        self.resets.clear();
    }

    /// Whether a packet can be sent to the guest; [`Muxer::next_packet`] may still find none.
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.queue.is_empty()
    }

    /// Writes the next packet to the receive buffer `packet` and returns its length; None if no packet is
    /// left to send. A buffer without room for a header and a byte of data is returned unused, with length 0.
    pub fn next_packet(&mut self, packet: Buffers<'_>) -> Option<u32> {
        if packet.len() <= HEADER_LENGTH {
            return Some(0);
        }
        if let Some(reset) = self.resets.pop_front() {
            packet.write(&encode_reset(&reset))?;
            return Some(HEADER_LENGTH);
        }
        while let Some(id) = self.queue.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.is_queued = false;
            let written = connection.next_packet(packet);
            self.enqueue_if_ready(id);
            if written.is_some() {
                return written;
            }
        }
        None
    }

    fn enqueue_if_ready(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.is_queued
            && connection.has_packet()
        {
            connection.is_queued = true;
            self.queue.push_back(id);
        }
    }

    fn send_reset(&mut self, reset: Reset) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// Handles a packet from the guest. Less than a header is dropped.
    pub fn receive(&mut self, packet: Buffers<'_>, poller: &Poller) {
        let (Some(header), Some(rest)) = (packet.read(), packet.after(HEADER_LENGTH)) else {
            return;
        };
        match parse(header) {
            Ok(header) => {
                let payload = (header.length <= MAX_PAYLOAD)
                    .then(|| rest.first(header.length))
                    .flatten();
                self.dispatch(&header, payload, poller);
            }
            Err(ParseError::Ignore) => {}
            Err(ParseError::Reset(reset)) => self.send_reset(reset),
        }
    }

    /// Handles a packet with a valid header. `payload` is None if it is longer than [`MAX_PAYLOAD`] or than
    /// what the chain holds: the stream lacks these bytes from then on, so the connection is reset.
    fn dispatch(&mut self, header: &Header, payload: Option<Buffers<'_>>, poller: &Poller) {
        let Some(id) = self.ids.get(&header.ports).copied() else {
            return self.handle_unknown(header, poller);
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.credit.update_peer(header.buf_alloc, header.fwd_cnt);
        let Some(payload) = payload else {
            return self.close(id, Action::ResetAndDrop);
        };
        let event = match header.op {
            Op::Rw if !connection.credit.receive(header.length) => {
                return self.close(id, Action::ResetAndDrop);
            }
            Op::Rw => ConnectionEvent::Rw,
            Op::Request => ConnectionEvent::Request,
            Op::Response => ConnectionEvent::Response,
            Op::Reset => ConnectionEvent::Reset,
            Op::Shutdown(flags) => ConnectionEvent::Shutdown(flags),
            Op::CreditRequest => {
                connection.request_credit_update();
                return self.enqueue_if_ready(id);
            }
            Op::CreditUpdate => return self.enqueue_if_ready(id),
        };
        match connection.handle_event(event) {
            Action::Deliver => {
                if connection.deliver(payload).is_err() {
                    connection.handle_event(ConnectionEvent::HostRxClosed);
                }
            }
            Action::Discard => connection.credit.forward(header.length),
            action @ (Action::Drain | Action::ResetAndDrain | Action::ResetAndDrop) => {
                return self.close(id, action);
            }
            Action::Nothing | Action::SendConnectOk | Action::ShutDownHost(_) | Action::SendShutdown(_) => {}
        }
        self.update_waiting(id, poller);
    }

    /// Handles a packet for which there is no connection.
    fn handle_unknown(&mut self, header: &Header, poller: &Poller) {
        match header.op {
            Op::Request => {
                if self.accept(header, poller).is_none() {
                    self.send_reset(reset_for(header.ports));
                }
            }
            // An RST is never answered by an RST, or both sides could go on forever.
            Op::Reset => {}
            Op::Response | Op::Shutdown(_) | Op::Rw | Op::CreditUpdate | Op::CreditRequest => {
                self.send_reset(reset_for(header.ports));
            }
        }
    }

    /// Accepts a REQUEST; None if there are too many connections, the host does not expect it or refuses it,
    /// or a system call fails.
    fn accept(&mut self, header: &Header, poller: &Poller) -> Option<()> {
        if self.connections.len() >= MAX_CONNECTIONS || !self.host.expects(header.ports) {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        ours.set_nonblocking(true).ok()?;
        self.host.connect(header.ports, OwnedFd::from(theirs)).ok()?;
        let mut connection = Connection::new(header.ports, ours, Op::Response);
        connection.credit.update_peer(header.buf_alloc, header.fwd_cnt);
        self.insert(connection, poller)
    }

    fn insert(&mut self, connection: Connection, poller: &Poller) -> Option<()> {
        let id = self.allocate_id();
        poller.add(connection.stream(), id, interest(false)).ok()?;
        self.ids.insert(connection.ports, id);
        self.connections.insert(id, connection);
        self.enqueue_if_ready(id);
        Some(())
    }

    fn allocate_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    /// Closes a connection towards the guest as `action` says. One with a backlog is kept until the backlog
    /// was written.
    fn close(&mut self, id: u64, action: Action) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.state = ConnectionState::Closed;
        let ports = connection.ports;
        self.ids.remove(&ports);
        if action == Action::ResetAndDrop || !connection.has_backlog() {
            self.connections.remove(&id);
        }
        if action != Action::Drain {
            self.send_reset(reset_for(ports));
        }
    }

    /// After any change of a connection: waits for its stream to become writable if it has a backlog, and
    /// queues it if it has a packet for the guest.
    fn update_waiting(&mut self, id: u64, poller: &Poller) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let has_backlog = connection.has_backlog();
        if has_backlog != connection.waits_for_writable {
            connection.waits_for_writable = has_backlog;
            let changed = poller.change(connection.stream(), id, interest(has_backlog));
            if changed.is_err() {
                return self.close(id, Action::ResetAndDrop);
            }
        }
        self.enqueue_if_ready(id);
    }

    /// Handles the event `ready` of the stream of a connection or a handshake.
    pub fn on_stream(&mut self, id: u64, ready: EventSet, poller: &Poller) {
        if let Some(handshake) = self.handshakes.remove(&id) {
            return self.advance_handshake(id, handshake, poller);
        }
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if is_readable(ready) {
            connection.readable = true;
        }
        if ready.contains(EventSet::OUT) && connection.flush().is_err() || is_hung_up(ready) {
            let action = connection.handle_event(ConnectionEvent::HostRxClosed);
            if action == Action::ResetAndDrop {
                return self.close(id, action);
            }
        }
        if connection.state == ConnectionState::Closed && (!connection.has_backlog() || is_hung_up(ready)) {
            self.connections.remove(&id);
            return;
        }
        self.update_waiting(id, poller);
    }

    /// The standalone listener accepted `stream`: waits for its CONNECT line. Drops it if too many are
    /// waiting.
    pub fn start_handshake(&mut self, stream: UnixStream, poller: &Poller) {
        if self.handshakes.len() >= MAX_HANDSHAKES || stream.set_nonblocking(true).is_err() {
            return;
        }
        let id = self.allocate_id();
        if poller.add(&stream, id, EventSet::IN).is_ok() {
            self.handshakes.insert(id, ConnectHandshake::new(stream));
        }
    }

    fn advance_handshake(&mut self, id: u64, handshake: ConnectHandshake, poller: &Poller) {
        match handshake.advance() {
            HandshakeStep::Incomplete(handshake) => drop(self.handshakes.insert(id, handshake)),
            HandshakeStep::Invalid => {}
            HandshakeStep::Connect { port, stream } => self.connect_to_guest(port, stream, poller),
        }
    }

    /// Sends the guest a REQUEST for `port` from a free port of the host.
    fn connect_to_guest(&mut self, port: u32, stream: UnixStream, poller: &Poller) {
        if self.connections.len() >= MAX_CONNECTIONS || poller.remove(&stream).is_err() {
            return;
        }
        let ports = loop {
            let ports = Ports {
                guest: port,
                host: self.next_host_port,
            };
            self.next_host_port = self.next_host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.ids.contains_key(&ports) {
                break ports;
            }
        };
        // If epoll refuses the stream it is closed, and the client sees that.
        let _ = self.insert(Connection::new(ports, stream, Op::Request), poller);
    }
}

/// What epoll waits for on a stream. Edge-triggered: [`Connection::readable`] keeps the state, so that a
/// stream that the guest has no credit to read causes no further events.
fn interest(write: bool) -> EventSet {
    let read = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if write { read | EventSet::OUT } else { read }
}

fn is_readable(ready: EventSet) -> bool {
    is_hung_up(ready) || ready.intersects(EventSet::IN | EventSet::READ_HANG_UP)
}

fn is_hung_up(ready: EventSet) -> bool {
    ready.intersects(EventSet::HANG_UP | EventSet::ERROR)
}
