//! The first line of a client of the standalone listener: `CONNECT <port>\n`. Used by the muxer. Reads never
//! beyond the line, because the bytes after it are for the guest.

use std::os::unix::net::UnixStream;

use rustix::io::Errno;

/// A client's stream whose CONNECT line has not arrived completely.
#[derive(Debug)]
pub struct ConnectHandshake {
    stream: UnixStream,
    /// What was read of the line.
    line: Vec<u8>,
}

/// Longest accepted line in bytes, without its end.
const MAX_LINE: usize = 32;

/// The result of reading what has arrived of the line.
#[derive(Debug)]
pub enum HandshakeStep {
    /// The line is incomplete.
    Incomplete(ConnectHandshake),
    /// The client wants to connect to this port of the guest.
    Connect {
        /// The guest's port.
        port: u32,
        /// The client's stream, positioned after the line.
        stream: UnixStream,
    },
    /// The client closed the stream, or sent something else; the stream is closed.
    Invalid,
}

impl ConnectHandshake {
    /// `stream` is newly accepted and non-blocking.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// Reads what has arrived, up to the end of the line.
    pub fn advance(mut self) -> HandshakeStep {
        let mut byte = [0_u8];
        while self.line.len() < MAX_LINE {
            match rustix::io::read(&self.stream, &mut byte) {
                Ok(1) if byte == *b"\n" => {
                    return match port(&self.line) {
                        Some(port) => HandshakeStep::Connect {
                            port,
                            stream: self.stream,
                        },
                        None => HandshakeStep::Invalid,
                    };
                }
                Ok(1) => self.line.extend(byte),
                Err(Errno::AGAIN) => return HandshakeStep::Incomplete(self),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return HandshakeStep::Invalid,
            }
        }
        HandshakeStep::Invalid
    }
}

/// The port in `CONNECT <port>`.
fn port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("CONNECT ")?.trim().parse().ok()
}
