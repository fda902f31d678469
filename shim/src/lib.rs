//! `containerd-shim-nacre-v2`, which containerd executes for a pod. `start` forks the daemon and prints its address;
//! the daemon makes the pod's directory and socket, serves the Task service and owns the pod's VM; `delete` cleans up
//! after a daemon that has exited. This file parses the arguments and dispatches; no thread or runtime is started
//! before the fork.

mod arguments;
mod bootstrap;
mod command;
mod connections;
mod daemon;
mod events;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod messages;
mod metrics;
mod proto;
mod sandbox;
mod service;
mod status;
mod streaming;
mod ttrpc_log;

use std::process::ExitCode;

use arguments::{Action, Arguments};

/// The program. Its exit code is what containerd expects of each command.
#[must_use]
pub fn main() -> ExitCode {
    // A descriptor that containerd leaks must reach neither the VMM nor hooks and loggers, and the daemon would
    // keep it open as long as the pod runs.
    nacre_pod::sys::close_inherited();
    let begun_ns = nacre_pod::clock::monotonic_ns();
    let outcome = Arguments::parse(std::env::args().skip(1))
        .map_err(anyhow::Error::from)
        .and_then(|arguments| match arguments.action {
            Action::Version => command::info::version(),
            Action::Info => command::info::info(),
            Action::Start => command::start::run(arguments, begun_ns),
            Action::Delete => command::delete::run(&arguments),
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-nacre-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}
