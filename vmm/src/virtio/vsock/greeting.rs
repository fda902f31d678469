//! What somebody who connects by hand says first: `CONNECT <port>`, one line. Used by the muxer; reads never beyond
//! the line, since what follows is the guest's.

use std::os::unix::net::UnixStream;

use rustix::io::Errno;

/// Reads one line, without its end, from a stream that dials by hand.
#[derive(Debug)]
pub struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

/// Longest line, bytes.
const MAX_LINE: usize = 32;

/// What a [`Greeting`] has come to.
#[derive(Debug)]
pub enum Greeted {
    /// More is to come.
    Wait(Greeting),
    /// It asked for this port of the guest.
    Port(u32, UnixStream),
    /// It is gone or asked for something else.
    Nonsense,
}

impl Greeting {
    /// Of a fresh, non-blocking stream.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// Reads what is there, never beyond the line.
    pub fn proceed(mut self) -> Greeted {
        let mut byte = [0_u8];
        while self.line.len() < MAX_LINE {
            match rustix::io::read(&self.stream, &mut byte) {
                Ok(1) if byte == *b"\n" => {
                    let line = String::from_utf8_lossy(&self.line).into_owned();
                    let port = line
                        .strip_prefix("CONNECT ")
                        .and_then(|port| port.trim().parse().ok());
                    return port.map_or(Greeted::Nonsense, |port| Greeted::Port(port, self.stream));
                }
                Ok(1) => self.line.extend(byte),
                Err(Errno::AGAIN) => return Greeted::Wait(self),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return Greeted::Nonsense,
            }
        }
        Greeted::Nonsense
    }
}
