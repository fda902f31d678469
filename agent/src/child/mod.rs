//! What the agent's forked children have in common on their way to a command, a container's init and an exec
//! process: standard streams, terminal, scheduling, user, capabilities, seccomp filter. Never returns to the
//! agent's code.

mod capabilities;
mod filter;
pub mod limits;
mod seccomp;
mod user;

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nacre_protocol::control::Channel;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use oci_spec::runtime::Process;
use rustix::fs::OFlags;
use rustix::pty::unlockpt;
use serde::Serialize;

pub use self::filter::{Filter, Filters};
pub use self::user::become_user;
use crate::command::open_in_container;
use crate::scheduler;
use crate::terminal::Terminal;

/// Device number of /dev/ptmx (Documentation/admin-guide/devices.txt).
const PTMX: (u32, u32) = (5, 2);

/// Why a child cannot execute its command.
#[derive(Debug)]
pub enum Failure {
    /// The command is missing or not executable; the text is runc's.
    Command(String),
    /// A field of the spec cannot be honoured.
    Field(&'static str, String),
    /// A step before the command failed.
    Step(String),
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command(text) | Self::Step(text) => f.write_str(text),
            Self::Field(field, reason) => write!(f, "{field}: {reason}"),
        }
    }
}

/// For `map_err`: names the step that failed.
pub fn at<E: Display>(step: &str) -> impl FnOnce(E) -> Failure + '_ {
    move |error| Failure::Step(format!("{step}: {error}"))
}

/// Makes these the caller's standard streams.
pub fn set_stdio([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    let step = "standard streams";
    dup2_stdin(stdin).map_err(at(step))?;
    dup2_stdout(stdout).map_err(at(step))?;
    dup2_stderr(stderr).map_err(at(step))
}

/// Opens a terminal in the container's own devpts instance, sends its master to the agent with `message`, and
/// makes it the session's controlling terminal. Returns the slave.
pub fn open_terminal(
    terminal: Terminal,
    report: &Channel,
    message: &impl Serialize,
) -> Result<OwnedFd, Failure> {
    let step = "terminal";
    let master = open_in_container("/dev/ptmx", OFlags::RDWR)
        .ok_or_else(|| Failure::Step("terminal: cannot open the container's /dev/ptmx".to_owned()))?;
    if master.metadata().map_err(at(step))?.rdev() != libc::makedev(PTMX.0, PTMX.1) {
        return Err(Failure::Step(
            "terminal: the container's /dev/ptmx is not the ptmx device (5:2)".to_owned(),
        ));
    }
    let master = OwnedFd::from(master);
    unlockpt(&master).map_err(at(step))?;
    let slave = terminal.open_slave(&master).map_err(at(step))?;
    report.send(message, &[master.as_raw_fd()]).map_err(at(step))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(at(step))?;
    set_stdio([slave.as_fd(); 3])?;
    Ok(slave)
}

/// Scheduling policy and I/O priority.
pub fn set_scheduling(process: &Process) -> Result<(), Failure> {
    if let Some(scheduler) = process.scheduler() {
        scheduler::set(scheduler).map_err(at("scheduler"))?;
    }
    if let Some(priority) = process.io_priority() {
        scheduler::set_io_priority(priority).map_err(at("ioPriority"))?;
    }
    Ok(())
}

/// Loads the filter, if there is one.
pub fn load_seccomp(filter: Option<&Filter>) -> Result<(), Failure> {
    filter
        .map_or(Ok(()), Filter::load)
        .map_err(at("seccomp: loading the filter"))
}

/// A system error as runc prints it.
fn runc_text(error: &io::Error) -> String {
    let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
    errno.desc().to_lowercase()
}
