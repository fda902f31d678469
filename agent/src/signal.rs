//! Signals, where safe wrappers do not reach: kill(2) for every number, the default of SIGPIPE. Never used on a pid that
//! may have been reaped.
#![allow(
    unsafe_code,
    reason = "no safe wrapper takes real-time signals or resets a handler"
)]

use std::io;

use nix::sys::signal::{SigHandler, Signal};
use rustix::process::Pid;

/// Sends `signal` to `pid`; nothing where the process is no more.
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

/// Has SIGPIPE end the process again, as it does by default.
pub fn reset_pipe() -> io::Result<()> {
    // SAFETY: no handler is installed: the default action runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}
