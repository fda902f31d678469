//! The socket: sends and receives one message with its descriptors. Used by both ends, and by the agent for
//! the messages of its helper processes. Knows no message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MAX_FDS, MAX_MESSAGE};

/// Why a message cannot be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on the socket failed.
    #[error("control socket: {0}")]
    Socket(#[from] nix::Error),
    /// The peer has closed its end.
    #[error("control socket: the peer has closed its end")]
    Closed,
    /// Not a message of this protocol.
    #[error("control message: {0}")]
    Json(#[from] serde_json::Error),
    /// The message exceeds [`MAX_MESSAGE`], or its descriptors [`MAX_FDS`].
    #[error("control message: expected at most {MAX_MESSAGE} bytes and {MAX_FDS} descriptors")]
    TooLong,
}

/// Both ends of a new control socket, close-on-exec.
///
/// # Errors
/// As socketpair(2).
pub fn socket_pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)
}

/// One end of a control socket. Sends and receives whole messages; blocks if the descriptor does.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Uses `socket`, a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends `message` with `fds`.
    ///
    /// # Errors
    /// [`Error::TooLong`] if a limit is exceeded; [`Error::Socket`] otherwise, with `EAGAIN` if a
    /// non-blocking socket is full.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[RawFd]) -> Result<(), Error> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(Error::TooLong);
        }
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<UnixAddr>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Receives one message and its descriptors, which are close-on-exec.
    ///
    /// # Errors
    /// [`Error::Closed`] if the peer has closed its end; [`Error::Socket`], with `EAGAIN` if a non-blocking
    /// socket has no message; otherwise the message is not valid.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), Error> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        // Closes the descriptors that are not taken out of it, also if some did not fit.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|error| nix::Error::from_raw(error.raw_os_error()))?;
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Error::TooLong);
        }
        if received.bytes == 0 {
            return Err(Error::Closed);
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let message = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
        Ok((message, fds))
    }
}

impl std::os::fd::AsFd for Channel {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FromVmm, ToVmm};
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{setsockopt, sockopt};
    use std::os::fd::AsFd as _;

    fn pair() -> (Channel, Channel) {
        let (a, b) = socket_pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (shim, vmm) = pair();
        let file = tempfile::tempfile().unwrap();
        vmm.send(
            &FromVmm::Connection {
                host_port: 7,
                guest_port: 8,
            },
            &[file.as_raw_fd()],
        )
        .unwrap();
        let (message, fds) = shim.receive::<FromVmm>().unwrap();
        assert_eq!(
            message,
            FromVmm::Connection {
                host_port: 7,
                guest_port: 8
            }
        );
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn a_closed_peer_is_its_own_error() {
        let (shim, vmm) = pair();
        drop(shim);
        assert!(matches!(vmm.receive::<ToVmm>(), Err(Error::Closed)));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_the_sender() {
        let (shim, _vmm) = pair();
        let error = FromVmm::Failed {
            step: "x".repeat(MAX_MESSAGE),
            error: String::new(),
            hint: None,
        };
        assert!(matches!(shim.send(&error, &[]), Err(Error::TooLong)));
    }

    #[test]
    fn an_unknown_message_is_an_error_that_names_it() {
        let (shim, vmm) = pair();
        shim.send(&"Nonsense", &[]).unwrap();
        assert!(
            vmm.receive::<ToVmm>()
                .unwrap_err()
                .to_string()
                .contains("Nonsense")
        );
    }
    #[test]
    fn descriptors_that_do_not_all_fit_are_closed() {
        let (shim, vmm) = pair();
        let (reader, writer) = std::io::pipe().unwrap();
        let fds = [writer.as_raw_fd(); MAX_FDS];
        vmm.send(&FromVmm::Running, &fds).unwrap();
        // The sender's credentials take a part of the room, so not all descriptors are received.
        setsockopt(&shim.0, sockopt::PassCred, &true).unwrap();
        assert!(matches!(shim.receive::<FromVmm>(), Err(Error::TooLong)));
        drop(writer);
        let mut pipe = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        poll(&mut pipe, PollTimeout::ZERO).unwrap();
        assert_eq!(
            pipe[0].revents(),
            Some(PollFlags::POLLHUP),
            "a received descriptor is still open"
        );
    }
}
