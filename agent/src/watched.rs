//! Puts a descriptor into the event loop. Used for every stream, pipe and socket that the agent waits on.
#![allow(
    unsafe_code,
    reason = "the event loop's registration relies on the owner keeping its descriptor"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nacre_protocol::control::Channel;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::fs::{OFlags, fcntl_setfl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::Error;

/// Owns one open descriptor, the same for its whole life.
pub trait Owner: AsRawFd {}

impl Owner for OwnedFd {}
impl Owner for File {}
impl Owner for Channel {}

/// Watches `owner`'s descriptor for being readable and writable.
pub fn watch<T: Owner>(owner: T) -> io::Result<AsyncFd<T>> {
    watch_for(owner, Interest::READABLE | Interest::WRITABLE)
}

/// Watches `owner`'s descriptor for `interest`.
pub fn watch_for<T: Owner>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: an `Owner` keeps its descriptor open and the same as long as it lives, and AsyncFd owns it.
    let watched = unsafe { AsyncFd::register_with_interest(owner, interest) };
    watched.map_err(io::Error::from)
}

/// A socket to a child of the agent's: the agent's end, watched, and the child's. Messages keep their borders.
pub fn channel() -> Result<(AsyncFd<Channel>, OwnedFd), Error> {
    let what = "making a socket for a process";
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(Error::system(what))?;
    fcntl_setfl(&ours, OFlags::NONBLOCK).map_err(Error::system(what))?;
    let ours = watch(Channel::new(ours)).map_err(Error::system(what))?;
    Ok((ours, theirs))
}
