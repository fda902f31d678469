//! Traffic between the host and a pod: the server, which is this program in a container of a pod or as /init of a
//! guest, and its client on the host. The client gives an order on a TCP connection; datagrams are counted by
//! whoever receives them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::statistics::{median, percentile};

/// What the server prints when it listens.
pub const UP: &str = "up";

/// Bytes that one transfer has.
pub const TRANSFER: u32 = 16 << 20;
/// Bytes of one write of a transfer.
const PIECE: usize = 64 << 10;
/// Round trips of one byte that one round has.
pub const ROUND_TRIPS: u32 = 1000;
/// Datagrams that one round sends in each direction.
pub const DATAGRAMS: u32 = 5_000;
/// Bytes of a datagram: the shortest Ethernet frame.
const DATAGRAM_BYTES: usize = 18;
/// No datagram for so long is the end.
const QUIET: Duration = Duration::from_millis(500);
/// How long the other side may take for an answer.
const DEADLINE: Duration = Duration::from_secs(90);

/// Where the server listens, and where datagrams are received.
const PORT: u16 = 7;
const DATAGRAM_PORT: u16 = 9;

/// Orders. The server reads [`TRANSFER`] bytes and returns one,
const SINK: u8 = b's';
/// ...or sends as many,
const SOURCE: u8 = b'g';
/// ...or returns each byte,
const ECHO: u8 = b'e';
/// ...or returns a byte when it is ready to count datagrams, and then what it counted,
const COUNT: u8 = b'c';
/// ...or sends [`DATAGRAMS`] of them to the client.
const FLOOD: u8 = b'f';

/// Serves one connection after the other, until it is killed.
///
/// # Errors
/// If it can't listen.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    println!("{UP}");
    for stream in listener.incoming() {
        // The client sees a connection that ends early.
        if let Err(error) = serve_stream(stream?) {
            eprintln!("{error:#}");
        }
    }
    Ok(())
}

fn serve_stream(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut order = [0];
    stream.read_exact(&mut order)?;
    match order[0] {
        SINK => {
            take(&mut stream)?;
            stream.write_all(&[1])?;
        }
        SOURCE => give(&mut stream)?,
        ECHO => {
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
        }
        COUNT => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DATAGRAM_PORT))?;
            stream.write_all(&[1])?;
            let counted = count(&socket)?;
            stream.write_all(&counted.number.to_le_bytes())?;
            stream.write_all(&u64::try_from(counted.took.as_nanos())?.to_le_bytes())?;
        }
        FLOOD => flood(stream.peer_addr()?.ip())?,
        other => bail!("there is no order {other}"),
    }
    Ok(())
}

/// Reads a transfer.
fn take(stream: &mut TcpStream) -> Result<()> {
    let (mut buffer, mut left) = (vec![0; 4 * PIECE], TRANSFER as usize);
    while left > 0 {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "{left} bytes are missing");
        left = left.checked_sub(length).context("too many bytes")?;
    }
    Ok(())
}

/// Writes a transfer.
fn give(stream: &mut TcpStream) -> Result<()> {
    let piece = vec![0; PIECE];
    for _ in 0..TRANSFER as usize / PIECE {
        stream.write_all(&piece)?;
    }
    Ok(())
}

/// Datagrams that arrived, and the time from the first to the last.
#[derive(Debug, Clone, Copy)]
struct Counted {
    number: u32,
    took: Duration,
}

/// Counts datagrams until there are [`DATAGRAMS`], or none for [`QUIET`].
fn count(socket: &UdpSocket) -> Result<Counted> {
    socket.set_read_timeout(Some(DEADLINE))?;
    let (mut buffer, mut number) = ([0; DATAGRAM_BYTES], 1);
    socket.recv(&mut buffer).context("waiting for a datagram")?;
    socket.set_read_timeout(Some(QUIET))?;
    let first = Instant::now();
    let mut last = first;
    while number < DATAGRAMS {
        match socket.recv(&mut buffer) {
            Ok(_) => number += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
        last = Instant::now();
    }
    Ok(Counted {
        number,
        took: last - first,
    })
}

/// Sends datagrams as fast as the socket takes them.
fn flood(to: IpAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((to, DATAGRAM_PORT))?;
    for _ in 0..DATAGRAMS {
        socket.send(&[0; DATAGRAM_BYTES])?;
    }
    Ok(())
}

/// The client of a server.
#[derive(Debug, Clone, Copy)]
pub struct Client(pub Ipv4Addr);

impl Client {
    fn order(self, order: u8) -> Result<TcpStream> {
        let address = SocketAddr::from((self.0, PORT));
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.write_all(&[order])?;
        Ok(stream)
    }

    /// MiB/s of a transfer to the server.
    ///
    /// # Errors
    /// If bytes are lost.
    pub fn upload(self) -> Result<f64> {
        let mut stream = self.order(SINK)?;
        let started = Instant::now();
        give(&mut stream)?;
        stream.read_exact(&mut [0]).context("waiting for the answer")?;
        Ok(rate(started))
    }

    /// MiB/s of a transfer from the server.
    ///
    /// # Errors
    /// If bytes are lost.
    pub fn download(self) -> Result<f64> {
        let mut stream = self.order(SOURCE)?;
        let started = Instant::now();
        take(&mut stream)?;
        Ok(rate(started))
    }

    /// Microseconds that half of the round trips of a byte took at most, and that 99 in 100 took at most.
    ///
    /// # Errors
    /// If the connection ends.
    pub fn round_trips(self) -> Result<[f64; 2]> {
        let mut stream = self.order(ECHO)?;
        let mut times = Vec::with_capacity(ROUND_TRIPS as usize);
        for _ in 0..ROUND_TRIPS {
            let sent = Instant::now();
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        Ok([median(&times), percentile(&times, 99.0)])
    }

    /// Datagrams per second that arrive at the server.
    ///
    /// # Errors
    /// If none arrives.
    pub fn send_datagrams(self) -> Result<f64> {
        let mut stream = self.order(COUNT)?;
        stream.read_exact(&mut [0]).context("waiting for the answer")?;
        flood(self.0.into())?;
        let (mut number, mut nanoseconds) = ([0; 4], [0; 8]);
        stream.read_exact(&mut number)?;
        stream.read_exact(&mut nanoseconds)?;
        per_second(Counted {
            number: u32::from_le_bytes(number),
            took: Duration::from_nanos(u64::from_le_bytes(nanoseconds)),
        })
    }

    /// Datagrams per second that arrive from the server.
    ///
    /// # Errors
    /// If none arrives.
    pub fn receive_datagrams(self) -> Result<f64> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DATAGRAM_PORT))?;
        let _stream = self.order(FLOOD)?;
        per_second(count(&socket)?)
    }
}

/// MiB/s of a transfer that ends now.
fn rate(started: Instant) -> f64 {
    f64::from(TRANSFER >> 20) / started.elapsed().as_secs_f64()
}

/// The first one starts the clock.
fn per_second(counted: Counted) -> Result<f64> {
    ensure!(counted.number > 1, "{} datagrams arrived", counted.number);
    Ok(f64::from(counted.number - 1) / counted.took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_counted_until_there_are_no_more() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for _ in 0..20 {
            sender
                .send_to(&[0; DATAGRAM_BYTES], socket.local_addr().unwrap())
                .unwrap();
        }
        let counted = count(&socket).unwrap();
        assert_eq!(counted.number, 20);
        assert!(counted.took < QUIET);
        assert!(per_second(counted).unwrap() > 0.0);
    }
}
