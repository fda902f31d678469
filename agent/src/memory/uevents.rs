//! The kernel's reports of devices (uevents), for the one thing that nothing else reports: that plugged memory
//! is usable, or gone. Called by `memory`; reads no more than the fact that there were some.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::async_fd;

/// The multicast group of the kernel's own uevents (`lib/kobject_uevent.c`).
const KERNEL_GROUP: u32 = 1;

/// A socket that receives uevents.
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Receives what is reported from now on.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        async_fd::register_for(socket, Interest::READABLE).map(Self)
    }

    /// Waits for the next uevents, and takes all that have arrived.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // One byte of each: the rest of a datagram is dropped.
        loop {
            match recv(self.0.get_ref().as_raw_fd(), &mut [0], MsgFlags::empty()) {
                // ENOBUFS: some were lost, which is a report, too.
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
