//! What the VMM gives up before the guest's first instruction: the host's file system, its other namespaces,
//! capabilities, and all system calls that a thread of its kind does not need.
//!
//! Order: [`enter`] while the process has one thread, right after the configuration has come; then every thread calls
//! [`Confinement::confine`] as its first act. Threads share memory, so the filters keep the kernel's surface small
//! and are no border between threads.
//!
//! [`root`] is the file system, [`limits`] what the process may use up, [`capabilities`] who it is, [`filter`] the
//! system calls, of which [`calls`] has the tables. Nothing here knows a device.

mod calls;
mod capabilities;
mod descriptors;
mod filter;
mod limits;
mod root;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};

pub use filter::Violation;

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

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vcpu, Self::Device, Self::FileServer, Self::Control];
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

/// Names the step in the error of `result`.
fn step<T, E: Display>(step: &'static str, result: Result<T, E>) -> Result<T, Error> {
    result.map_err(|error| Error {
        step,
        reason: error.to_string(),
    })
}

/// Leaves the host: new mount, network, IPC and UTS namespaces, root pivoted to a private mount of `shared` (or to an
/// empty tmpfs of bounded size), rlimits, no_new_privs, not dumpable, umask 0, no capability that no thread needs.
/// The process must have one thread, since namespaces and capabilities belong to threads.
///
/// What is needed of /proc, /sys or /dev must be open before, but a directory only as the root of a detached mount
/// (open_tree with OPEN_TREE_CLONE): every other directory descriptor would lead back to the host's files by `..`.
/// The host's root can still look at /proc/PID/ns.
///
/// # Errors
/// [`Error`] with the step that failed; the process must then end.
pub fn enter(shared: Option<&Path>) -> Result<(), Error> {
    limits::one_thread()?;
    descriptors::refuse_host_directories()?;
    // A backtrace reads files that are gone from here on, by calls that no filter allows: where the environment asks
    // for one, a panic would end by SIGSYS instead of being reported.
    std::panic::set_hook(Box::new(|panic| eprintln!("nacre-vmm: {panic}")));
    limits::set()?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    step("new namespaces (this needs CAP_SYS_ADMIN)", unshare(namespaces))?;
    root::pivot(shared)?;
    // The file server gives files exactly the mode that the guest asked for.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    capabilities::bound()?;
    step("no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    step("not dumpable", nix::sys::prctl::set_dumpable(false))
}

/// The system call filters of all thread kinds, compiled once, shared by the threads.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    filters: Option<Arc<filter::Filters>>,
}

impl Confinement {
    /// Confines nothing; for tests.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Confines every kind to its tables; `violation` says what a call outside them gets.
    ///
    /// # Errors
    /// [`Error`] where a table does not compile.
    pub fn closed(violation: Violation) -> Result<Self, Error> {
        limits::keep_arenas()?;
        Ok(Self {
            filters: Some(Arc::new(filter::Filters::compile(violation)?)),
        })
    }

    /// Drops the capabilities and installs the system call filter for the calling thread. A thread that serves files
    /// also gets a working directory and a umask of its own.
    ///
    /// # Errors
    /// [`Error`] with the step that failed; the thread must then end.
    pub fn confine(&self, kind: ThreadKind) -> Result<(), Error> {
        let Some(filters) = &self.filters else {
            return Ok(());
        };
        if kind == ThreadKind::FileServer {
            step("a working directory of its own", unshare(CloneFlags::CLONE_FS))?;
        }
        capabilities::keep(kind)?;
        filters.install(kind)
    }
}
