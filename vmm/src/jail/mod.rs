//! What the VMM gives up before the guest's first instruction: the host's file system and other namespaces,
//! capabilities, and every system call that a thread does not need. docs/jail.md is the overview.
//!
//! Order: the main thread calls [`enter`] right after it has received the configuration, while the process
//! has one thread; after that, each thread calls [`Confinement::confine`] before anything else. Threads share
//! memory, so the seccomp filters reduce the kernel's attack surface but do not isolate threads from each
//! other.
//!
//! [`descriptors`] checks for open directories of the host, [`root`] replaces the root file system,
//! [`limits`] sets rlimits, [`signals`] sets what a crash does, [`capabilities`] drops capabilities, and
//! [`filter`] compiles the seccomp tables of the profiles in [`calls`]. Nothing here depends on a device.

pub mod calls;
mod capabilities;
mod descriptors;
mod filter;
mod limits;
#[cfg(any(test, feature = "fuzzing"))]
pub mod recorder;
mod root;
mod signals;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

pub use calls::Profile;
pub use filter::Violation;

/// Why the jail could not be closed.
#[derive(Debug, thiserror::Error)]
#[error("jail: {step}: {reason}")]
pub struct Error {
    /// The step that failed, such as "set secure bits".
    pub step: &'static str,
    /// The system call's error, or what was found instead of what is required.
    pub reason: String,
}

/// Names the step in the error of `result`.
fn step<T, E: Display>(step: &'static str, result: Result<T, E>) -> Result<T, Error> {
    result.map_err(|error| Error {
        step,
        reason: error.to_string(),
    })
}

/// Leaves the host's namespaces and drops privileges: new mount, network, IPC and UTS namespaces, the root
/// pivoted to a private mount of `shared` (or to an empty, read-only tmpfs of bounded size), rlimits, umask
/// 0, the file server's capabilities alone, no_new_privs, not dumpable. The process must have one thread,
/// since namespaces and capabilities belong to threads.
///
/// The kernel sets "dumpable" to fs.suid_dumpable again when the file server first becomes another user.
/// RLIMIT_CORE prevents core files and dumps to a program whatever it is, and MADV_DONTDUMP excludes guest
/// memory from any dump.
///
/// Open whatever is needed of /proc, /sys or /dev before, but a directory only as the root of a detached
/// mount (open_tree with OPEN_TREE_CLONE): any other directory descriptor would lead back to the host's files
/// by `..`. The host's root can still inspect the process through /proc/PID.
///
/// # Errors
/// [`Error`] with the step that failed; the process must then exit.
pub fn enter(shared: Option<&Path>) -> Result<(), Error> {
    limits::require_single_thread()?;
    descriptors::refuse_host_directories()?;
    // The default hook prints a backtrace if RUST_BACKTRACE is set. That reads files by calls that no filter
    // allows, so a panic would end in SIGSYS without its message.
    std::panic::set_hook(Box::new(|panic| eprintln!("nacre-vmm: {panic}")));
    limits::set_rlimits()?;
    signals::set_crash_actions()?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    step(
        "create namespaces (this needs CAP_SYS_ADMIN)",
        unshare(namespaces),
    )?;
    root::pivot(shared)?;
    // The file server creates files with exactly the mode that the guest asked for.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    capabilities::limit_process()?;
    step("set no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    step("clear dumpable", nix::sys::prctl::set_dumpable(false))
}

/// Whether threads confine themselves, and what a forbidden system call leads to.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    violation: Option<Violation>,
}

impl Confinement {
    /// Confines nothing; for tests and `--no-jail`.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Confines each thread to its profile; `violation` is what any other system call leads to.
    ///
    /// # Errors
    /// [`Error`] if the allocator refuses its setting.
    pub fn closed(violation: Violation) -> Result<Self, Error> {
        limits::confine_malloc()?;
        Ok(Self {
            violation: Some(violation),
        })
    }

    /// Drops capabilities and installs the seccomp filter of `profile` for the calling thread.
    ///
    /// # Errors
    /// [`Error`] with the step that failed; the thread must then exit.
    pub fn confine(&self, profile: &Profile) -> Result<(), Error> {
        let Some(violation) = self.violation else {
            return Ok(());
        };
        if profile.own_working_directory {
            step(
                "unshare working directory and umask",
                unshare(CloneFlags::CLONE_FS),
            )?;
        }
        capabilities::limit_thread(profile)?;
        filter::install(profile, violation)
    }
}
