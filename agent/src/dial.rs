//! Opens streams to the host: over vsock in a guest, over Unix sockets if the agent runs standalone. Used for
//! the agent's own connection and for every standard stream of a process; never accepts a connection.
#![allow(unsafe_code, reason = "vsock's socket option has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use nacre_protocol::vsock::{HOST_CID, StreamAddress};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, UnixAddr, VsockAddr, bind, connect, getsockopt, socket,
    sockopt,
};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::error::Error;

/// SO_VM_SOCKETS_CONNECT_TIMEOUT of linux/vm_sockets.h.
const CONNECT_TIMEOUT_OPTION: libc::c_int = 6;
/// How long the host may take to accept a connection. It refuses one at once; the kernel's 2 s are too short for a host
/// whose CPUs are all busy.
static CONNECT_TIMEOUT: libc::timeval = libc::timeval {
    tv_sec: 45,
    tv_usec: 0,
};

/// The address family and address of the host.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// AF_VSOCK, CID 2 (the host).
    Vsock,
    /// A Unix socket in this directory, whose file name is the port in decimal.
    Unix(PathBuf),
}

/// A non-blocking connect(2) in progress.
#[derive(Debug)]
pub struct Dialing {
    socket: OwnedFd,
    port: u32,
}

impl Dialer {
    /// Starts a non-blocking connect to `port`. [`Dialing::finish`] waits for its result.
    pub fn start(&self, port: u32) -> Result<Dialing, Error> {
        self.start_from(None, port)
    }

    /// As [`Dialer::start`], to the host port of `stream` from its guest port. Over Unix sockets the guest
    /// port has no meaning.
    pub fn start_stream(&self, stream: StreamAddress) -> Result<Dialing, Error> {
        self.start_from(Some(stream.guest_port), stream.host_port)
    }

    fn start_from(&self, guest_port: Option<u32>, port: u32) -> Result<Dialing, Error> {
        let socket = match self {
            Self::Vsock => {
                vsock_socket(guest_port).and_then(|socket| begin(socket, &VsockAddr::new(HOST_CID, port)))
            }
            Self::Unix(directory) => UnixAddr::new(&directory.join(port.to_string()))
                .and_then(|address| begin(new_socket(AddressFamily::Unix)?, &address)),
        };
        socket
            .map(|socket| Dialing { socket, port })
            .map_err(Error::system(format!("connecting to the host's port {port}")))
    }
}

/// A vsock socket, bound to `port` of the guest if one is given.
fn vsock_socket(port: Option<u32>) -> nix::Result<OwnedFd> {
    let socket = new_socket(AddressFamily::Vsock)?;
    set_connect_timeout(&socket)?;
    if let Some(port) = port {
        bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    }
    Ok(socket)
}

fn set_connect_timeout(socket: &OwnedFd) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::timeval>()).map_err(|_| Errno::EOVERFLOW)?;
    let timeout = (&raw const CONNECT_TIMEOUT).cast();
    // SAFETY: the kernel reads `length` bytes of a static of that size; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT_OPTION,
            timeout,
            length,
        )
    };
    Errno::result(result).map(drop)
}

fn new_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, SockType::Stream, flags, None)
}

fn begin(socket: OwnedFd, address: &dyn SockaddrLike) -> nix::Result<OwnedFd> {
    match connect(socket.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

impl Dialing {
    /// Waits until the connection is established or refused.
    pub async fn finish(self) -> Result<AsyncFd<OwnedFd>, Error> {
        let what = format!("connecting to the host's port {}", self.port);
        let context = || Error::system::<io::Error>(what.clone());
        let stream = async_fd::register(self.socket).map_err(context())?;
        let mut guard = stream.writable().await.map_err(context())?;
        guard.retain_ready();
        match getsockopt(&stream, sockopt::SocketError).map_err(Error::system(what.clone()))? {
            0 => Ok(stream),
            error => Err(context()(io::Error::from_raw_os_error(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vsock_socket_takes_the_timeout() {
        // A host without vsock has no such sockets.
        match new_socket(AddressFamily::Vsock) {
            Ok(_) => drop(vsock_socket(None).unwrap()),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
