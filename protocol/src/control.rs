//! The control socket between the shim and a VMM that it started: a `SOCK_SEQPACKET` Unix socket with one
//! JSON message per packet, and file descriptors with it (`SCM_RIGHTS`). The VMM exits when the shim's end is
//! closed.
//!
//! ```text
//! shim ── Configure + fds ──▶ vmm
//! shim ◀── Step … ─────────── vmm      a step of the start is done, with its time
//! shim ◀── Running ────────── vmm      the VMM is confined, the guest starts
//! shim ◀── Failed ─────────── vmm      a step of the start failed; the VMM exits
//! shim ◀── Connection + fd ── vmm      the guest opened a vsock connection
//! shim ── QueryExits ───────▶ vmm      answered by Exits
//! shim ◀── Ended ──────────── vmm      the guest has ended, and how; the VMM exits
//! ```

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The descriptor of the control socket in a VMM that the shim starts (`--control-fd 3`).
pub const CONTROL_FD: RawFd = 3;
/// The exit code of a VMM that called abort(3), as a shell reports SIGABRT: PID 1 of a PID namespace can't be
/// ended by a signal that it sends itself.
pub const ABORT_EXIT_CODE: u8 = 134;
/// Longest message, bytes of JSON.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most file descriptors with one message.
pub const MAX_FDS: usize = 8;

/// The VM to run. Its descriptors are sent with the message, in the order of [`ConfigFd`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// The sender's [`crate::BUILD_ID`].
    pub build_id: String,
    /// The pod's id, for messages.
    pub pod: String,
    /// Guest memory at boot, MiB.
    pub memory_mib: u32,
    /// vCPUs, 1..=32.
    pub vcpus: u8,
    /// Appended to the kernel command line that the VMM composes.
    pub extra_cmdline: String,
    /// Whether the guest's console is also copied to the VMM's standard error.
    pub console_to_stderr: bool,
}

/// The order of the descriptors with [`Configure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ConfigFd {
    /// `/dev/kvm`.
    Kvm = 0,
    /// The guest kernel (vmlinux).
    Kernel = 1,
    /// The guest's initramfs.
    Initrd = 2,
    /// A memfd of [`crate::console::RING_BYTES`] for the console's last bytes.
    Console = 3,
}

/// Number of descriptors with [`Configure`].
pub const CONFIG_FDS: usize = 4;

/// A message from the shim to the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToVmm {
    /// The first message, sent once.
    Configure(Configure),
    /// Requests [`FromVmm::Exits`].
    QueryExits,
}

/// A message from the VMM to the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromVmm {
    /// A step of the start is done.
    Step(Step),
    /// The VMM is confined, and the guest's first instruction is about to run. From now on, mounts can be
    /// moved into the VMM's mount namespace, whose root is the tree that the guest sees.
    Running,
    /// A step of the start failed; the VMM exits.
    Failed {
        /// The step that failed.
        step: String,
        /// The error with its causes: what failed, on which object.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The guest opened a vsock connection. One descriptor is sent with the message: the host's end of the
    /// stream.
    Connection {
        /// The host port that the guest connects to.
        host_port: u32,
        /// The guest port that it connects from.
        guest_port: u32,
    },
    /// Number of VM exits since the guest's start, by kind.
    Exits(BTreeMap<String, u64>),
    /// The guest has ended; the VMM exits.
    Ended(Outcome),
}

/// A finished step of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done, in a few words.
    pub name: String,
    /// `CLOCK_MONOTONIC` when it was done, nanoseconds.
    pub done_ns: u64,
}

impl Step {
    /// A step that is finished now.
    ///
    /// # Errors
    /// If the monotonic clock cannot be read.
    pub fn now(name: impl Into<String>) -> nix::Result<Self> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
        let done_ns = std::time::Duration::from(now).as_nanos();
        Ok(Self {
            name: name.into(),
            done_ns: u64::try_from(done_ns).unwrap_or(u64::MAX),
        })
    }
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest powered itself off, by the ACPI sleep control register.
    PowerOff,
    /// The guest reset itself by the ACPI reset register, or its CPU shut down by a triple fault.
    Reset {
        /// Which of the two.
        cause: String,
    },
    /// The guest's kernel reported a panic (pvpanic).
    Panic,
    /// KVM or a part of the VMM failed.
    Fault {
        /// The part that failed, such as "vcpu0".
        part: String,
        /// The error with its causes.
        error: String,
    },
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset { cause } => write!(f, "the guest reset itself ({cause})"),
            Self::Panic => write!(f, "the guest's kernel panicked"),
            Self::Fault { part, error } => write!(f, "{part} failed: {error}"),
        }
    }
}

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
