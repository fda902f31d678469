//! What the signals of a crash do. Called by [`super::enter`]. The handler makes no system call but its exit.
//!
//! A VMM that the shim starts is PID 1 of its PID namespace. The kernel ends such a process by a SIGSEGV or
//! SIGBUS that one of its instructions caused, but discards a signal with the default action that the process
//! sends itself, as abort(3) does with SIGABRT (pid_namespaces(7)).
#![allow(unsafe_code, reason = "sigaction")]

use nacre_protocol::control::ABORT_EXIT_CODE;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Error, step};
use crate::process::exit_now;

/// Sets SIGSEGV and SIGBUS to their default action, so that each ends the process under its own name. Rust's
/// runtime has installed a handler that calls rt_sigaction, which no seccomp filter allows: without this, any
/// crash would look like a forbidden system call. Makes abort(3) exit with [`ABORT_EXIT_CODE`].
pub fn set_crash_actions() -> Result<(), Error> {
    for (signal, handler) in [
        (Signal::SIGSEGV, SigHandler::SigDfl),
        (Signal::SIGBUS, SigHandler::SigDfl),
        (Signal::SIGABRT, SigHandler::Handler(exit_on_abort)),
    ] {
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the only handler calls nothing but _exit, which is async-signal-safe.
        let set = unsafe { sigaction(signal, &action) };
        step("set the actions of SIGSEGV, SIGBUS and SIGABRT", set)?;
    }
    Ok(())
}

extern "C" fn exit_on_abort(_signal: i32) {
    exit_now(ABORT_EXIT_CODE)
}
