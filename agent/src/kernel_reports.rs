//! The kernel's reports of its devices by netlink multicast (uevents), for the fact that something has changed.
//! Called by `memory`, which then looks; reads no message.

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
const KERNEL_UEVENTS: u32 = 1;

/// A socket that receives reports.
pub struct KernelReports(AsyncFd<OwnedFd>);

impl KernelReports {
    /// Receives the reports of devices from now on.
    pub fn of_devices() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_UEVENTS))?;
        async_fd::register_for(socket, Interest::READABLE).map(Self)
    }

    /// Waits for the next reports, and takes all that have arrived.
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
