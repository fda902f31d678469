//! Signal calls that have no safe wrapper: kill(2) with any signal number, and default actions.
//! Called by the container code and by the process that becomes a command; never with a pid that may have
//! been reaped.
#![allow(
    unsafe_code,
    reason = "no safe wrapper takes real-time signals or resets a handler"
)]

use std::io;

use nix::sys::signal::{SigHandler, Signal};
use rustix::process::Pid;

/// Sends `signal` to `pid`. A process that no longer exists (ESRCH) counts as success.
pub fn send(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    let result = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Sets SIGCHLD back to SIG_DFL: the agent's handler writes to a descriptor that its children do not have.
pub fn restore_default_sigchld() -> io::Result<()> {
    // SAFETY: no handler is installed: the default action runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

/// Sets SIGPIPE back to SIG_DFL: Rust's runtime ignores it, and an ignored signal stays ignored across
/// execve.
pub fn restore_default_sigpipe() -> io::Result<()> {
    // SAFETY: no handler is installed: the default action runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}
