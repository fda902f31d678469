//! The socket: sends and receives one message with its descriptors. Used by both ends, and by the agent for the
//! messages of its helper processes. Knows no message.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
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
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let (length, flags, fds) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<UnixAddr>(
                self.0.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let mut fds = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    fds.extend(raw.into_iter().map(own));
                }
            }
            (received.bytes, received.flags, fds)
        };
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(Error::TooLong);
        }
        if length == 0 {
            return Err(Error::Closed);
        }
        Ok((
            serde_json::from_slice(bytes.get(..length).unwrap_or_default())?,
            fds,
        ))
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

#[allow(unsafe_code, reason = "recvmsg returns descriptors as numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg has just created this descriptor in this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::super::{FromVmm, ToVmm};
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (Channel, Channel) {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
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
}
