//! The state machine of a connection, and its flow control. Pure: the muxer passes events in and carries out
//! the actions.
//!
//! ```text
//!                RESPONSE
//!   Connecting ────────────▶ Open { guest, host }    the directions that each side has shut down so far
//!      │                       │ RST · the guest has shut down both directions · a protocol violation
//!      └──────── RST ──────────┴─────────────────────────────────────────▶ Closed
//! ```
//! A connection that the guest requests starts as Open. When the host's stream is closed, the guest gets a
//! SHUTDOWN of both directions, and closes the connection itself: by RST, or by a SHUTDOWN of both directions
//! once its program has read everything.

use std::num::Wrapping;

use super::packet::ShutdownFlags;

/// `buf_alloc` of every connection, in bytes: how much the guest may send before the host's stream has taken
/// it. What the stream does not take at once is buffered here.
pub const BUF_ALLOC: u32 = 256 * 1024;

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// A REQUEST was sent to the guest, which has not replied.
    Connecting,
    /// Established.
    Open {
        /// What the guest has shut down.
        guest: ShutdownFlags,
        /// What the host has shut down.
        host: ShutdownFlags,
    },
    /// No longer known to the guest. Bytes for the host may still be buffered.
    Closed,
}

/// An event of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The guest sent RESPONSE.
    Response,
    /// The guest sent RST.
    Reset,
    /// The guest sent SHUTDOWN with these flags.
    Shutdown(ShutdownFlags),
    /// The guest sent RW.
    Rw,
    /// The guest sent a REQUEST for a connection that exists already.
    Request,
    /// The host's stream is at its end: the host sends no more, and everything was read.
    HostTxClosed,
    /// The host's stream accepts no more data.
    HostRxClosed,
}

/// What the muxer must do about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Send the client that connected through the listener its `OK` line.
    SendConnectOk,
    /// Write the data to the host's stream.
    Deliver,
    /// Drop the data, but return the credit for it: the host's stream accepts no more.
    Discard,
    /// Shut down the host's stream for these flags of the guest, for writing only after the backlog was
    /// written.
    ShutDownHost(ShutdownFlags),
    /// Send the guest SHUTDOWN with these flags.
    SendShutdown(ShutdownFlags),
    /// Send RST; close the host's stream after the backlog was written.
    ResetAndDrain,
    /// Close the host's stream after the backlog was written.
    Drain,
    /// Send RST and close the host's stream at once.
    ResetAndDrop,
}

impl ConnectionState {
    /// Established, with nothing shut down.
    pub const OPEN: Self = Self::Open {
        guest: ShutdownFlags::NONE,
        host: ShutdownFlags::NONE,
    };

    /// The state after `event`, and what to do about it.
    #[must_use]
    pub fn next(self, event: ConnectionEvent) -> (Self, Action) {
        use ConnectionEvent as E;
        match (self, event) {
            (Self::Closed, _) => (Self::Closed, Action::Nothing),
            (Self::Connecting, E::Response) => (Self::OPEN, Action::SendConnectOk),
            (Self::Connecting, E::Reset) => (Self::Closed, Action::Drain),
            (Self::Connecting, E::HostTxClosed) => (self, Action::Nothing),
            (Self::Connecting, E::Shutdown(_) | E::Rw | E::Request | E::HostRxClosed)
            | (Self::Open { .. }, E::Response | E::Request) => (Self::Closed, Action::ResetAndDrop),
            (Self::Open { .. }, E::Reset) => (Self::Closed, Action::Drain),
            (Self::Open { guest, host }, E::Shutdown(flags)) => {
                let now = guest.union(flags);
                if now == ShutdownFlags::BOTH {
                    return (Self::Closed, Action::ResetAndDrain);
                }
                let new = now.difference(guest);
                let action = if new == ShutdownFlags::NONE {
                    Action::Nothing
                } else {
                    Action::ShutDownHost(new)
                };
                (Self::Open { guest: now, host }, action)
            }
            (Self::Open { guest, .. }, E::Rw) if guest.contains(ShutdownFlags::SEND) => {
                (Self::Closed, Action::ResetAndDrop)
            }
            (Self::Open { host, .. }, E::Rw) if host.contains(ShutdownFlags::RECEIVE) => {
                (self, Action::Discard)
            }
            (Self::Open { .. }, E::Rw) => (self, Action::Deliver),
            (Self::Open { guest, host }, E::HostTxClosed) => {
                host_shuts_down(guest, host, ShutdownFlags::SEND)
            }
            (Self::Open { guest, host }, E::HostRxClosed) => {
                host_shuts_down(guest, host, ShutdownFlags::RECEIVE)
            }
        }
    }

    /// Whether data of the host may be sent to the guest.
    #[must_use]
    pub fn may_send(self) -> bool {
        matches!(
            self,
            Self::Open { guest, host }
                if !guest.contains(ShutdownFlags::RECEIVE) && !host.contains(ShutdownFlags::SEND)
        )
    }
}

fn host_shuts_down(
    guest: ShutdownFlags,
    host: ShutdownFlags,
    flag: ShutdownFlags,
) -> (ConnectionState, Action) {
    let now = host.union(flag);
    let action = if now == host {
        Action::Nothing
    } else {
        Action::SendShutdown(now)
    };
    (ConnectionState::Open { guest, host: now }, action)
}

/// Flow control in both directions (virtio 1.2, 5.10.6.3). All counters are bytes modulo 2^32.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    /// Received from the guest.
    received: Wrapping<u32>,
    /// Of these, written to the host's stream or discarded: our `fwd_cnt`.
    forwarded: Wrapping<u32>,
    /// The last `fwd_cnt` that was sent to the guest.
    advertised: Wrapping<u32>,
    /// Sent to the guest.
    sent: Wrapping<u32>,
    /// The guest's `buf_alloc`.
    peer_buf_alloc: u32,
    /// The guest's `fwd_cnt`.
    peer_fwd_cnt: Wrapping<u32>,
}

impl Credit {
    /// Stores `buf_alloc` and `fwd_cnt` of a packet from the guest.
    pub fn update_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = Wrapping(fwd_cnt);
    }

    /// Counts `length` bytes from the guest; false, without counting, if that exceeds its credit.
    #[must_use]
    pub fn receive(&mut self, length: u32) -> bool {
        let buffered = (self.received - self.forwarded).0;
        let fits = buffered.checked_add(length).is_some_and(|sum| sum <= BUF_ALLOC);
        if fits {
            self.received += length;
        }
        fits
    }

    /// Counts `length` bytes that left our buffer.
    pub fn forward(&mut self, length: u32) {
        self.forwarded += length;
    }

    /// Counts `length` bytes that were sent to the guest.
    pub fn send(&mut self, length: u32) {
        self.sent += length;
    }

    /// How many bytes may be sent to the guest: `peer_free` of the specification, 0 if the guest's counters
    /// contradict each other.
    #[must_use]
    pub fn peer_free(&self) -> u32 {
        self.peer_buf_alloc
            .saturating_sub((self.sent - self.peer_fwd_cnt).0)
    }

    /// Whether the guest must get a credit update: once half of the buffer has become free unannounced. The
    /// guest then never waits if the host reads at once, and one update covers many packets.
    #[must_use]
    pub fn update_is_due(&self) -> bool {
        (self.forwarded - self.advertised).0 >= BUF_ALLOC / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is sent now.
    pub fn advertise(&mut self) -> (u32, u32) {
        self.advertised = self.forwarded;
        (BUF_ALLOC, self.forwarded.0)
    }
}
