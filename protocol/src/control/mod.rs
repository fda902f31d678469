//! The control socket between the shim and a VMM that it started: a `SOCK_SEQPACKET` Unix socket with one
//! JSON message per packet, and file descriptors with it (`SCM_RIGHTS`). The VMM exits when the shim's end is
//! closed.
//!
//! ```text
//! shim ── Configure + fds ──▶ vmm
//! shim ◀── Step … ─────────── vmm      a step of the start is done, with its time
//! shim ◀── TemplateRefused ── vmm      the guest boots, though the configuration has a template
//! shim ◀── Running ────────── vmm      the VMM is confined, the guest starts
//! shim ◀── Failed ─────────── vmm      a step of the start failed; the VMM exits
//! shim ◀── Connection + fd ── vmm      the guest opened a vsock connection that is expected
//! shim ── Request ──────────▶ vmm      at any time after Configure
//! shim ◀── Answer ─────────── vmm      to each request, by its id and in order, once the VM runs
//! shim ◀── MemoryPlugged ──── vmm      the guest has plugged as much memory as the last request asked for
//! shim ◀── Ended ──────────── vmm      the guest has ended, and how; the VMM exits
//! ```

mod channel;
mod configure;
mod descriptors;
mod request;

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

pub use channel::{Channel, Error, socket_pair};
pub use configure::{
    Configure, DeviceConfig, DeviceListError, MAX_DEVICES, MAX_DISKS, MAX_NETS, MAX_PLUGGED_MIB, MAX_TAPS,
    MEMORY_SECTION_MIB, MIN_MTU, TemplateFiles, check_pluggable,
};
pub use descriptors::{Attachments, DescriptorError, Descriptors, FdIndex};
pub use request::{Answer, ErrorText, Lenient, MEMORY_BLOCK_MIB, Request};

/// The descriptor of the control socket in a VMM that the shim starts (`--control-fd 3`).
pub const CONTROL_FD: RawFd = 3;
/// The exit code of a VMM that called abort(3), as a shell reports SIGABRT: PID 1 of a PID namespace can't be
/// ended by a signal that it sends itself.
pub const ABORT_EXIT_CODE: u8 = 134;
/// Longest message, bytes of JSON.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most file descriptors with one message, which is the kernel's limit (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// A message from the shim to the VMM. The VMM receives requests as [`Lenient`], so that it can answer one
/// that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToVmm<R = Request> {
    /// The first message, sent once.
    Configure(Configure),
    /// Answered by [`FromVmm::Answer`] with the same id.
    Request {
        /// Chosen by the shim, different for each request.
        id: u64,
        /// What to do.
        request: R,
    },
}

/// A message from the VMM to the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromVmm {
    /// A step of the start is done.
    Step(Step),
    /// The template of the configuration can't be used, and the guest boots. Sent before the guest runs.
    TemplateRefused {
        /// What is wrong with which file, or what failed.
        reason: String,
        /// Whether the host failed at this moment, such as for lack of memory, and the template may be used
        /// by another VMM. Otherwise it is damaged, or was made by another build or on another host.
        is_transient: bool,
    },
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
    /// The guest opened a vsock connection that is expected ([`DeviceConfig::Vsock`]). One descriptor is sent
    /// with the message: the host's end of the stream. No other message to the shim has a descriptor.
    Connection {
        /// The host port that the guest connects to.
        host_port: u32,
        /// The guest port that it connects from.
        guest_port: u32,
    },
    /// The answer to a [`ToVmm::Request`].
    Answer {
        /// The request's id.
        id: u64,
        /// The result, or why the request was not carried out.
        result: Result<Answer, ErrorText>,
    },
    /// The guest has plugged or unplugged memory until its size was that of the last
    /// [`Request::PlugMemory`]. Sent at most once for each such request, however often the guest plugs and
    /// unplugs.
    MemoryPlugged {
        /// That size in MiB.
        mib: u32,
    },
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
