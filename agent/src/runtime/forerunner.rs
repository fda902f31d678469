//! A child of the agent that forks a container's init if the agent can't do that itself: into a user
//! namespace and a pid namespace that belongs to it, into a time namespace, or into the pid namespace of
//! others. The forerunner does first what the init has no privilege for in its user namespace. It exits when the
//! agent watches the init.
//!
//! ```text
//! agent ── clone3 ──▶ forerunner ── clone3 ──▶ init
//! agent ◀── Forked ── forerunner
//! agent ── id maps, then one byte ───────────▶ init, which becomes root of its user namespace
//! agent ── closes ──▶ forerunner, which exits: the agent is the init's parent
//! ```

use std::os::fd::{AsRawFd as _, OwnedFd};

use nacre_protocol::control::Channel;
use rustix::process::{DumpableBehavior, Pid};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::namespaces::Namespaces;
use super::{InitRequest, child, receive};
use crate::child::{Failure, at};
use crate::error::{Error, truncate};
use crate::fork::{self, close_others};
use crate::signal;

/// Exit status of a forerunner that has failed. The agent discards it.
const FAILED: i32 = 255;

/// The message from the forerunner.
#[derive(Debug, Serialize, Deserialize)]
enum FromForerunner {
    /// The init's pid in the guest's pid namespace.
    Forked { pid: i32 },
    /// A field of the spec cannot be honoured.
    BadSpec { field: String, reason: String },
    /// A step failed.
    Failed(String),
}

/// Receives the init's pid.
pub async fn pid(forerunner: &AsyncFd<Channel>) -> Result<Pid, Error> {
    match receive::<FromForerunner>(forerunner).await {
        Ok((FromForerunner::Forked { pid }, _)) => {
            Pid::from_raw(pid).ok_or_else(|| Error::Runtime("the container's init has pid 0".to_owned()))
        }
        Ok((FromForerunner::BadSpec { field, reason }, _)) => Err(Error::bad_spec(field, reason)),
        Ok((FromForerunner::Failed(text), _)) => Err(Error::Runtime(text)),
        Err(error) => Err(Error::InitDied(error.to_string())),
    }
}

/// Forks the init of `request`, whose end of the socket to the agent is `report`, and waits until the agent
/// closes `agent`. Returns the forerunner's exit status.
pub fn run(
    request: &InitRequest<'_>,
    namespaces: &Namespaces,
    stdio: &[OwnedFd; 3],
    agent: &Channel,
    report: &Channel,
) -> i32 {
    let message = match fork_init(request, namespaces, stdio, agent, report) {
        Ok(pid) => FromForerunner::Forked {
            pid: pid.as_raw_nonzero().get(),
        },
        Err(Failure::Field(field, reason)) => FromForerunner::BadSpec {
            field: field.to_owned(),
            reason: truncate(reason),
        },
        Err(Failure::Command(text) | Failure::Step(text)) => FromForerunner::Failed(truncate(text)),
    };
    if agent.send(&message, &[]).is_err() || !matches!(message, FromForerunner::Forked { .. }) {
        return FAILED;
    }
    // Init must stay a child of this process until the agent's reaper watches it.
    child::wait(agent);
    0
}

fn fork_init(
    request: &InitRequest<'_>,
    namespaces: &Namespaces,
    stdio: &[OwnedFd; 3],
    agent: &Channel,
    report: &Channel,
) -> Result<Pid, Failure> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("PR_SET_DUMPABLE"))?;
    signal::restore_default_sigchld().map_err(at("SIGCHLD"))?;
    let mut kept: Vec<_> = namespaces.descriptors().collect();
    kept.extend([agent.as_raw_fd(), report.as_raw_fd()]);
    kept.extend(stdio.iter().map(|fd| fd.as_raw_fd()));
    close_others(&mut kept).map_err(at("closing descriptors"))?;
    let files = child::prepare(request)?;
    namespaces.enter_for_children(request.spec)?;
    fork::into_namespaces(namespaces.of_fork(), || {
        child::run_forked(request, namespaces, stdio, report, &files)
    })
    .map_err(at("forking a container's init"))
}
