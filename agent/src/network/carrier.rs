//! Waits until links can send: the driver of a device that was just attached reports its carrier a little
//! later, and until then the kernel drops what is sent. Asks again at each change of a link; never polls.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nacre_netlink::{Socket, link};
use nacre_protocol::agent::Link;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::io::unix::AsyncFd;

use super::MAX_LINKS;
use crate::async_fd;
use crate::error::Error;

/// How long the links together may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// RTMGRP_LINK.
const LINK_CHANGES: u32 = 1;

/// A socket that the kernel sends a message to for each change of a link.
pub struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<_> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkRoute,
            )?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_CHANGES))?;
            async_fd::register(socket)
        };
        open()
            .map(Self)
            .map_err(Error::system("watching the guest's links"))
    }

    /// Waits until those of `links` that are up have a carrier.
    pub async fn wait_for_carriers(&self, links: &[Link]) -> Result<(), Error> {
        let waiting = async {
            loop {
                let Some(name) = without_carrier(links)? else {
                    return Ok(());
                };
                self.next()
                    .await
                    .map_err(|error| Error::Network(format!("link {name}: {error}")))?;
            }
        };
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(result) => result,
            Err(_elapsed) => {
                let name = without_carrier(links)?.unwrap_or_default();
                let seconds = DEADLINE.as_secs();
                Err(Error::Network(format!(
                    "link {name}: no carrier within {seconds} s"
                )))
            }
        }
    }

    /// Waits for a change, and takes all that are queued.
    async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                // ENOBUFS: so many that some were dropped, which is a change, too.
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

/// The first of `links` that is up without a carrier.
fn without_carrier(links: &[Link]) -> Result<Option<String>, Error> {
    let failed = |error: nacre_netlink::Error| Error::Network(format!("listing the guest's links: {error}"));
    let mut socket = Socket::open().map_err(failed)?;
    let present = socket
        .dump(link::list(), MAX_LINKS, link::parse)
        .map_err(failed)?;
    let lacks = |wanted: &&Link| {
        let mut found = present.iter().filter(|found| found.name == wanted.name);
        wanted.up && found.any(|found| !found.has_carrier())
    };
    Ok(links.iter().find(lacks).map(|link| link.name.clone()))
}
