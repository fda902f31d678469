//! Opens streams to the host: over vsock in a guest, over Unix sockets by hand and in tests. Used for the agent's own
//! connection and for every standard stream of a process; never accepts a connection.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use nacre_protocol::vsock::HOST_CID;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, UnixAddr, VsockAddr, connect, getsockopt, socket,
    sockopt,
};
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::watched;

/// How the host is reached.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// vsock, the host's CID.
    Vsock,
    /// The Unix socket named by the port in this directory.
    Unix(PathBuf),
}

/// A connection under way.
#[derive(Debug)]
pub struct Dialing {
    socket: OwnedFd,
    port: u32,
}

impl Dialer {
    /// Begins to connect to `port`; the rest happens while the caller does other things.
    pub fn start(&self, port: u32) -> Result<Dialing, Error> {
        let socket = match self {
            Self::Vsock => begin(AddressFamily::Vsock, &VsockAddr::new(HOST_CID, port)),
            Self::Unix(directory) => UnixAddr::new(&directory.join(port.to_string()))
                .and_then(|address| begin(AddressFamily::Unix, &address)),
        };
        socket
            .map(|socket| Dialing { socket, port })
            .map_err(Error::system(format!("connecting to port {port}")))
    }
}

fn begin(family: AddressFamily, address: &dyn SockaddrLike) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

impl Dialing {
    /// Waits until the host has accepted.
    pub async fn finish(self) -> Result<AsyncFd<OwnedFd>, Error> {
        let what = format!("connecting to port {}", self.port);
        let context = || Error::system::<io::Error>(what.clone());
        let stream = watched::watch(self.socket).map_err(context())?;
        let mut guard = stream.writable().await.map_err(context())?;
        guard.retain_ready();
        match getsockopt(&stream, sockopt::SocketError).map_err(Error::system(what.clone()))? {
            0 => Ok(stream),
            error => Err(context()(io::Error::from_raw_os_error(error))),
        }
    }
}
