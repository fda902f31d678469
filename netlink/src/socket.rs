//! The socket: sends one request and waits for its acknowledgement, or reads a bounded dump. The kernel
//! answers while the request is being sent, so nothing here waits longer than the kernel's network lock.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as Netlink, SocketAddr};

use crate::message::{Message, Received, attributes_after, messages, text, u32_at};

/// Length of the longest datagram that the kernel sends for a dump, bytes.
const DATAGRAM: usize = 64 * 1024;
/// `struct nlmsgerr` without the payload of the request: the code, and the request's header.
const ERROR_HEADER: usize = 20;
const ERROR_TEXT: u16 = 1;
const F_REQUEST: u16 = 0x1;
const F_ACK: u16 = 0x4;
const F_DUMP: u16 = 0x300;
const F_DUMP_INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused it.
    #[error("{}{source}", if text.is_empty() { String::new() } else { format!("{text}: ") })]
    Refused {
        /// The kernel's explanation, often empty.
        text: String,
        /// The error's number.
        source: io::Error,
    },
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel sent something else than an answer.
    #[error("netlink socket: expected the answer to the request, got another message")]
    NoAnswer,
    /// The list is longer than the caller reads.
    #[error("expected at most {0} entries")]
    TooMany(usize),
    /// The list changed while the kernel wrote it.
    #[error("it changed while it was read")]
    Changed,
}

impl Error {
    /// The errno with which the kernel refused the request.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Socket(_) | Self::NoAnswer | Self::TooMany(_) | Self::Changed => None,
        }
    }
}

/// A socket for requests about one network namespace.
pub struct Socket {
    socket: Netlink,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket for the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> Result<Self, Error> {
        let mut socket = Netlink::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors have the kernel's text, and do not repeat the request.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    fn send(&mut self, message: Message, flags: u16) -> Result<u32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(F_REQUEST | flags, self.sequence);
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    fn receive(&mut self) -> Result<(), Error> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        Ok(())
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// [`Error::Refused`] with the kernel's reason.
    pub fn request(&mut self, message: Message) -> Result<(), Error> {
        let sequence = self.send(message, F_ACK)?;
        self.receive()?;
        for received in messages(&self.buffer) {
            if received.sequence == sequence && received.kind == ERROR {
                return result(&received);
            }
        }
        Err(Error::NoAnswer)
    }

    /// Asks for a list and passes the body of each entry to `parse`; returns what it makes of them.
    ///
    /// # Errors
    /// [`Error::TooMany`] if `parse` makes more than `most` values.
    pub fn dump<T>(
        &mut self,
        message: Message,
        most: usize,
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let sequence = self.send(message, F_DUMP)?;
        let mut found = Vec::new();
        loop {
            self.receive()?;
            for received in messages(&self.buffer) {
                if received.sequence != sequence {
                    continue;
                }
                if received.flags & F_DUMP_INTERRUPTED != 0 {
                    return Err(Error::Changed);
                }
                match received.kind {
                    DONE => return Ok(found),
                    ERROR => return result(&received).and(Err(Error::NoAnswer)),
                    _ => found.extend(parse(received.body)),
                }
                if found.len() > most {
                    return Err(Error::TooMany(most));
                }
            }
        }
    }
}

/// The result in an NLMSG_ERROR message: a code of 0 acknowledges the request.
fn result(received: &Received<'_>) -> Result<(), Error> {
    let code = u32_at(received.body, 0).ok_or(Error::NoAnswer)?.cast_signed();
    if code == 0 {
        return Ok(());
    }
    let reason = attributes_after(received.body, ERROR_HEADER).find(|(kind, _)| *kind == ERROR_TEXT);
    Err(Error::Refused {
        text: reason.map(|(_, value)| text(value)).unwrap_or_default(),
        source: io::Error::from_raw_os_error(code.saturating_neg()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32, text: &[u8]) -> Result<(), Error> {
        let mut body = code.to_ne_bytes().to_vec();
        body.extend([0; 16]);
        let length = u16::try_from(4 + text.len()).unwrap();
        body.extend(length.to_ne_bytes());
        body.extend(ERROR_TEXT.to_ne_bytes());
        body.extend(text);
        result(&Received {
            kind: ERROR,
            flags: 0,
            sequence: 1,
            body: &body,
        })
    }

    #[test]
    fn a_refusal_has_the_kernel_s_text_and_errno() {
        answer(0, b"").unwrap();
        let error = answer(-17, b"Exclusivity flag on\0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "Exclusivity flag on: File exists (os error 17)"
        );
        assert_eq!(error.errno(), Some(17));
        assert_eq!(
            answer(-1, b"").unwrap_err().to_string(),
            "Operation not permitted (os error 1)"
        );
        let short = Received {
            kind: ERROR,
            flags: 0,
            sequence: 1,
            body: &[],
        };
        assert!(matches!(result(&short), Err(Error::NoAnswer)));
    }

    #[test]
    fn requests_are_answered_by_this_kernel() {
        let mut socket = Socket::open().unwrap();
        let links = socket
            .dump(crate::link::list(), 10_000, crate::link::parse)
            .unwrap();
        assert!(links.iter().any(|link| link.is_loopback()), "{links:?}");
        let none = socket
            .dump(crate::link::list(), 0, crate::link::parse)
            .unwrap_err();
        assert_eq!(none.to_string(), "expected at most 0 entries");
        // The socket had unread messages of the dump; they must not answer the next request.
        let mut socket = Socket::open().unwrap();
        let missing = socket.request(crate::link::set_up(u32::MAX >> 1)).unwrap_err();
        assert!(matches!(missing, Error::Refused { .. }), "{missing}");
    }
}
