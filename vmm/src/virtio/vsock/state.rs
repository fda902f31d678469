//! A connection's life as a table, and its credit. Pure: the muxer asks what an event means and does it.
//!
//! ```text
//!                 RESPONSE
//!   Dialing ─────────────────▶ Open { guest, host }   what each side has shut so far
//!      │                         │ RST · both halves shut by the guest · nonsense
//!      └──────── RST ────────────┴──────────────────────────────────────────▶ Ended
//! ```
//! A connection that the guest opens starts as Open. When the host's end is gone the guest is told by SHUTDOWN of both
//! halves, and ends the connection itself by RST, or by SHUTDOWN of both once its program has read everything.

use std::num::Wrapping;

use super::packet::Shut;

/// What we let the guest have on its way to the host, per connection, bytes: what the host's socket does not take at
/// once is buffered up to this.
pub const BUFFER: u32 = 256 * 1024;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The guest was sent a REQUEST and has not answered.
    Dialing,
    /// Data flows.
    Open {
        /// What the guest has shut.
        guest: Shut,
        /// What the host has shut.
        host: Shut,
    },
    /// Unknown to the guest. Bytes for the host may be left.
    Ended,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The guest sent RESPONSE.
    Response,
    /// The guest sent RST.
    Reset,
    /// The guest shut halves of its end.
    Shutdown(Shut),
    /// The guest sent data.
    Data,
    /// The guest sent a REQUEST for a connection that is there.
    Request,
    /// The host's end will send no more; everything it sent has been read.
    HostSilent,
    /// The host's end will take no more.
    HostDeaf,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Tell the host that its connection stands.
    Connected,
    /// Give the data to the host.
    Deliver,
    /// Take the data as delivered; nobody wants it.
    Discard,
    /// After what is buffered, close these halves (as the guest names them) of the host's stream.
    CloseHost(Shut),
    /// Send the guest SHUTDOWN with these flags.
    TellShutdown(Shut),
    /// Send RST; give the host what is buffered, then close its end.
    ResetAndDrain,
    /// Give the host what is buffered, then close its end.
    Drain,
    /// Send RST and close the host's end.
    ResetAndDrop,
}

impl State {
    /// A connection that both sides agreed on.
    pub const OPEN: Self = Self::Open {
        guest: Shut::NONE,
        host: Shut::NONE,
    };

    /// What `event` leads to.
    #[must_use]
    pub fn next(self, event: Event) -> (Self, Act) {
        match (self, event) {
            (Self::Ended, _) => (Self::Ended, Act::Nothing),
            (Self::Dialing, Event::Response) => (Self::OPEN, Act::Connected),
            (Self::Dialing, Event::Reset) => (Self::Ended, Act::Drain),
            (Self::Dialing, Event::HostSilent) => (self, Act::Nothing),
            (Self::Dialing, Event::Shutdown(_) | Event::Data | Event::Request | Event::HostDeaf)
            | (Self::Open { .. }, Event::Response | Event::Request) => (Self::Ended, Act::ResetAndDrop),
            (Self::Open { .. }, Event::Reset) => (Self::Ended, Act::Drain),
            (Self::Open { guest, host }, Event::Shutdown(flags)) => {
                let now = guest.with(flags);
                if now == Shut::BOTH {
                    return (Self::Ended, Act::ResetAndDrain);
                }
                let fresh = now.without(guest);
                let act = if fresh == Shut::NONE {
                    Act::Nothing
                } else {
                    Act::CloseHost(fresh)
                };
                (Self::Open { guest: now, host }, act)
            }
            (Self::Open { guest, .. }, Event::Data) if guest.has(Shut::SEND) => {
                (Self::Ended, Act::ResetAndDrop)
            }
            (Self::Open { host, .. }, Event::Data) if host.has(Shut::RECEIVE) => (self, Act::Discard),
            (Self::Open { .. }, Event::Data) => (self, Act::Deliver),
            (Self::Open { guest, host }, Event::HostSilent) => host_shuts(guest, host, Shut::SEND),
            (Self::Open { guest, host }, Event::HostDeaf) => host_shuts(guest, host, Shut::RECEIVE),
        }
    }

    /// Whether the host's bytes may go to the guest.
    #[must_use]
    pub fn may_send(self) -> bool {
        matches!(self, Self::Open { guest, host } if !guest.has(Shut::RECEIVE) && !host.has(Shut::SEND))
    }
}

fn host_shuts(guest: Shut, host: Shut, half: Shut) -> (State, Act) {
    let now = host.with(half);
    let act = if now == host {
        Act::Nothing
    } else {
        Act::TellShutdown(now)
    };
    (State::Open { guest, host: now }, act)
}

/// Both directions' flow control (virtio 1.2, 5.10.6.3). All counters run modulo 2^32.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    sent: Wrapping<u32>,
    peer_alloc: u32,
    peer_forwarded: Wrapping<u32>,
}

impl Credit {
    /// Takes in what a packet of the guest says of its buffer.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_alloc = buf_alloc;
        self.peer_forwarded = Wrapping(fwd_cnt);
    }

    /// Counts `length` bytes from the guest; false where it had no credit for them.
    #[must_use]
    pub fn receive(&mut self, length: u32) -> bool {
        let pending = (self.received - self.forwarded).0;
        let fits = pending.checked_add(length).is_some_and(|sum| sum <= BUFFER);
        if fits {
            self.received += length;
        }
        fits
    }

    /// Counts bytes of the guest that no longer need room here.
    pub fn forward(&mut self, length: u32) {
        self.forwarded += length;
    }

    /// Counts bytes that went to the guest.
    pub fn send(&mut self, length: u32) {
        self.sent += length;
    }

    /// How many bytes the guest has room for. A guest that contradicts itself has none.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.peer_alloc
            .saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// Whether the guest knows so little of its credit that it is worth a packet: half the buffer, so that a guest
    /// whose bytes are taken at once never has to wait, and there is one packet back for many.
    #[must_use]
    pub fn update_is_due(&self) -> bool {
        (self.forwarded - self.told).0 >= BUFFER / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that goes out now.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUFFER, self.forwarded.0)
    }
}
