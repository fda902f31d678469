//! Brings up the loopback device of the calling process's network namespace. Used for the guest's network
//! namespace and for a container's own one.

use std::io;

use nacre_netlink::{Error, Socket, link};

/// Interface index of the loopback device, which is the first one in every network namespace.
const LOOPBACK: u32 = 1;

/// Sets the loopback device up and waits for the kernel's acknowledgement.
pub fn bring_up() -> io::Result<()> {
    let done = Socket::open().and_then(|mut socket| socket.request(link::set_up(LOOPBACK)));
    done.map_err(|error| match error {
        Error::Refused { source, .. } | Error::Socket(source) => source,
        Error::NoAnswer | Error::TooMany(_) | Error::Changed => io::Error::other(error.to_string()),
    })
}
