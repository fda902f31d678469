//! Forward: connects to a port of the pod's localhost and copies between that connection and a stream to the
//! host, both ways. The agent's service calls it for each connection that a client on the host makes to the
//! localhost of the pod's network namespace there. Never listens, never interprets a byte.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nacre_protocol::agent::{Family, ForwardRequest};
use nacre_protocol::vsock::StreamAddress;
use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpSocket;

use crate::async_fd;
use crate::copy::Pair;
use crate::dial::Dialer;
use crate::error::Error;

/// How long a server may take to accept a connection: one that has too many waiting answers nothing.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// What a request asks for, checked.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// The addresses to try, in this order.
    addresses: [IpAddr; 2],
    port: u16,
    stream: StreamAddress,
}

impl Target {
    fn parse(request: &ForwardRequest) -> Result<Self, Error> {
        let bad = |what: String| Error::BadRequest { what };
        let addresses = match request.family.enum_value() {
            Ok(Family::IPV4) => [IPV4, IPV6],
            Ok(Family::IPV6) => [IPV6, IPV4],
            Ok(Family::FAMILY_UNSPECIFIED) | Err(_) => {
                let family = request.family.value();
                return Err(bad(format!("{family} is not an address family of localhost")));
            }
        };
        let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| bad(format!("expected a port in 1..=65535, got {}", request.port)))?;
        let stream = StreamAddress::from_bits(request.stream)
            .ok_or_else(|| bad(format!("{:#x} is not the address of a stream", request.stream)))?;
        Ok(Self {
            addresses,
            port,
            stream,
        })
    }

    /// As [`Target::connect`], within `deadline`.
    async fn connect_within(&self, deadline: Duration) -> Result<OwnedFd, Error> {
        let connected = tokio::time::timeout(deadline, self.connect()).await;
        connected.unwrap_or_else(|_elapsed| Err(self.unreachable(io::ErrorKind::TimedOut.into())))
    }

    /// Connects to the first address that accepts the connection.
    async fn connect(&self) -> Result<OwnedFd, Error> {
        let [first, second] = self.addresses;
        let refused = match connect(SocketAddr::new(first, self.port)).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
            connected => return connected.map_err(|source| self.unreachable(source)),
        };
        connect(SocketAddr::new(second, self.port))
            .await
            // The second address was not asked for.
            .map_err(|_| self.unreachable(refused))
    }

    fn unreachable(&self, source: io::Error) -> Error {
        Error::Unreachable {
            port: self.port,
            source,
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_nodelay(true)?;
    Ok(socket.connect(address).await?.into_std()?.into())
}

/// Carries out `request`, until both directions have ended.
pub async fn forward(dialer: &Dialer, request: &ForwardRequest) -> Result<(), Error> {
    let target = Target::parse(request)?;
    let server = target.connect_within(CONNECT_DEADLINE).await?;
    let stream = dialer.start_stream(target.stream)?.finish().await?;
    let connection = Connection::new(stream, &server)?;
    let Err(source) = connection.copy().await else {
        return Ok(());
    };
    // The server gets a reset, and so does the client, by the error. The host must not take a closed stream
    // for the regular end of the server's data: the stream stays open until the host has closed it.
    let _ = sockopt::set_socket_linger(&server, Some(Duration::ZERO));
    drop(server);
    tokio::spawn(connection.outlive_host());
    Err(Error::Reset {
        port: target.port,
        source,
    })
}

/// A stream to the host and a connection to a server, joined.
struct Connection {
    to_server: Pair,
    to_host: Pair,
}

impl Connection {
    fn new(stream: AsyncFd<OwnedFd>, server: &OwnedFd) -> Result<Self, Error> {
        let failed = || Error::system::<io::Error>("registering a forwarded connection with the event loop");
        let duplicate = |fd: &OwnedFd| async_fd::register(fd.try_clone()?);
        Ok(Self {
            to_host: Pair {
                from: duplicate(server).map_err(failed())?,
                to: duplicate(stream.get_ref()).map_err(failed())?,
            },
            to_server: Pair {
                from: stream,
                to: duplicate(server).map_err(failed())?,
            },
        })
    }

    /// Copies both ways. The end of one direction is passed on, and the other direction goes on.
    async fn copy(&self) -> io::Result<()> {
        tokio::try_join!(copy_to_end(&self.to_server), copy_to_end(&self.to_host))?;
        Ok(())
    }

    /// Closes the connection to the server, and the stream once the host has closed it.
    async fn outlive_host(self) {
        let Self { to_server, to_host } = self;
        let (stream, to_host) = (to_server.from, to_host.to);
        drop(to_server.to);
        let mut unwanted = [0; 4096];
        loop {
            let Ok(mut ready) = stream.readable().await else {
                break;
            };
            match rustix::io::read(&stream, &mut unwanted) {
                Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Ok(0) | Err(_) => break,
            }
        }
        drop(to_host);
    }
}

async fn copy_to_end(pair: &Pair) -> io::Result<()> {
    pair.copy().await?;
    match shutdown(&pair.to, Shutdown::Write) {
        // The other side has closed the connection since.
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
