//! A session of containerd's streaming server: exec, attach and port-forward over a WebSocket, each message a
//! byte for the channel and data. Called by cases. The server's other protocol, SPDY, is not spoken.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};

use crate::containerd::ctr::DEADLINE;

/// Channel of a process's standard input.
pub const STDIN: u8 = 0;
/// Channel of its standard output.
pub const STDOUT: u8 = 1;
/// Channel of its standard error.
pub const STDERR: u8 = 2;
/// Channel on which its end is told, as a Kubernetes Status in JSON.
pub const END: u8 = 3;
/// Channel of the terminal's size.
pub const RESIZE: u8 = 4;

/// The largest message that is accepted, bytes.
const LARGEST: u64 = 1 << 20;

/// An open session.
pub struct Session {
    socket: TcpStream,
}

impl Session {
    /// Opens the session that containerd made at `url`.
    ///
    /// # Errors
    /// If the server does not switch to the protocol.
    pub fn open(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .with_context(|| format!("no http: {url}"))?;
        let (host, path) = rest.split_once('/').with_context(|| format!("no path: {url}"))?;
        let mut socket = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        write!(
            socket,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bmFjcmUtY3JpLXRlc3Qtcw==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nOrigin: http://{host}\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).context("the server's answer")?;
            head.push(byte[0]);
            ensure!(head.len() < 8192, "the server's answer has no end");
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101"), "the server refuses: {head}");
        Ok(Self { socket })
    }

    /// Sends `data` on `channel`.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let length = data.len() + 1;
        let mut frame = vec![0x82];
        match u8::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(
                    u16::try_from(length)
                        .context("a message above 64 KiB")?
                        .to_be_bytes(),
                );
            }
        }
        // A mask of zeros changes nothing.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(data);
        Ok(self.socket.write_all(&frame)?)
    }

    /// The next message with its channel; None when the server has closed the session.
    ///
    /// # Errors
    /// If none comes within the deadline.
    pub fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let mut head = [0; 2];
            if self.socket.read(&mut head[..1])? == 0 {
                return Ok(None);
            }
            self.socket.read_exact(&mut head[1..])?;
            let length = match head[1] & 0x7f {
                126 => {
                    let mut length = [0; 2];
                    self.socket.read_exact(&mut length)?;
                    u64::from(u16::from_be_bytes(length))
                }
                127 => {
                    let mut length = [0; 8];
                    self.socket.read_exact(&mut length)?;
                    u64::from_be_bytes(length)
                }
                short => u64::from(short),
            };
            ensure!(length <= LARGEST, "a message of {length} bytes");
            let mut payload = vec![0; usize::try_from(length)?];
            self.socket.read_exact(&mut payload)?;
            match head[0] & 0x0f {
                0..=2 if payload.is_empty() => {}
                0..=2 => {
                    let channel = payload.remove(0);
                    return Ok(Some((channel, payload)));
                }
                8 => return Ok(None),
                9 | 10 => {}
                other => bail!("a frame of kind {other}"),
            }
        }
    }

    /// What `channel` has received when `enough` says so of it, or when the session ends.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn read_until(&mut self, channel: u8, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while !enough(&all) {
            match self.receive()? {
                Some((found, data)) if found == channel => all.extend(data),
                Some(_) => {}
                None => return Ok(all),
            }
        }
        Ok(all)
    }
}
