//! Registers a descriptor with the event loop. Used for every stream, pipe and socket that the agent waits
//! on; never reads or writes one.
#![allow(
    unsafe_code,
    reason = "the event loop's registration relies on the owner keeping its descriptor"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nacre_protocol::control::{Channel, socket_pair};
use rustix::fs::{OFlags, fcntl_setfl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::Error;

/// A type that owns one open descriptor and never replaces it.
pub trait FdOwner: AsRawFd {}

impl FdOwner for OwnedFd {}
impl FdOwner for File {}
impl FdOwner for Channel {}

/// Registers `owner`'s descriptor for readable and writable events.
pub fn register<T: FdOwner>(owner: T) -> io::Result<AsyncFd<T>> {
    register_for(owner, Interest::READABLE | Interest::WRITABLE)
}

/// Registers `owner`'s descriptor for the events in `interest` only.
pub fn register_for<T: FdOwner>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: an `FdOwner` keeps the same descriptor open as long as it lives, and the AsyncFd owns it.
    let registered = unsafe { AsyncFd::register_with_interest(owner, interest) };
    registered.map_err(io::Error::from)
}

/// A SOCK_SEQPACKET socket pair to a child process: the agent's end, registered, and the child's end.
pub fn channel() -> Result<(AsyncFd<Channel>, OwnedFd), Error> {
    let what = "creating the socket to a child process";
    let (ours, theirs) = socket_pair().map_err(Error::system(what))?;
    fcntl_setfl(&ours, OFlags::NONBLOCK).map_err(Error::system(what))?;
    let ours = register(Channel::new(ours)).map_err(Error::system(what))?;
    Ok((ours, theirs))
}
