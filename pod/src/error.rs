//! Why a call fails. The caller (`shim`, for containerd) turns it into its own form, such as a ttrpc status.

use nacre_protocol::{container_id, spec};

use crate::process_id::ProcessId;
use crate::size::TooLarge;

/// A step that failed, with what an operator needs: which step, on which object, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailed {
    /// The step, such as "boot guest".
    pub step: String,
    /// Why it failed, on which object.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
    /// The last lines of the guest's console, oldest first; empty if no guest had been started.
    pub console: Vec<String>,
}

impl std::fmt::Display for StepFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.reason)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        if !self.console.is_empty() {
            write!(f, "\nthe guest's console ends with:")?;
            for line in &self.console {
                write!(f, "\n  {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for StepFailed {}

/// Why a call fails.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no container with this id.
    #[error("no task {0}")]
    NoTask(String),
    /// There is no pod with this id here.
    #[error("no sandbox {0}")]
    NoPod(String),
    /// The container has no process with this exec id.
    #[error("no {0}")]
    NoProcess(ProcessId),
    /// A signal for a process that has exited.
    #[error("process already finished: {0} is stopped")]
    Finished(ProcessId),
    /// The id is in use.
    #[error("{0} already exists")]
    Exists(ProcessId),
    /// The process or container is in a state that does not allow the call.
    #[error("{name} is {state}: it can't be {wanted}")]
    State {
        /// The process.
        name: ProcessId,
        /// Its state, such as "running".
        state: &'static str,
        /// What the call would do to it, such as "deleted".
        wanted: &'static str,
    },
    /// The pod's pause container has no process.
    #[error(
        "{id} is the pod's pause container, which has no process and no files: it can't be {wanted}; use one of \
         the pod's other containers"
    )]
    PauseContainer {
        /// The container's id.
        id: String,
        /// What the call would do to it, such as "paused".
        wanted: &'static str,
    },
    /// The pod is in a state that does not allow the call.
    #[error("the pod is {state}: it can't be {wanted}")]
    PodState {
        /// Its state, such as "stopped".
        state: &'static str,
        /// What the call would do to it, such as "started".
        wanted: &'static str,
    },
    /// Counters of a stopped container: the guest's kernel dropped them with its cgroup.
    #[error("no counters: {0} is stopped")]
    NoCounters(ProcessId),
    /// An id that can't be the name of a directory.
    #[error("invalid id {0:?}: expected {rule}", rule = container_id::RULE)]
    InvalidId(String),
    /// The request or the spec can't be honoured; the text names each field by its JSON path.
    #[error("{0}")]
    Refused(String),
    /// The call is not implemented.
    #[error("{0}")]
    NotImplemented(&'static str),
    /// A step on the host failed, or the VM ended.
    #[error("{0}")]
    Step(Box<StepFailed>),
    /// The agent's own answer, passed on.
    #[error("{message}")]
    Guest {
        /// The agent's status code.
        code: ttrpc::Code,
        /// The agent's message.
        message: String,
    },
    /// Delete was called while the container was being created.
    #[error("{0}: Create was cancelled by Delete")]
    Cancelled(ProcessId),
    /// The sandbox is shutting down.
    #[error("the sandbox is shutting down")]
    Closing,
}

impl From<StepFailed> for Error {
    fn from(failed: StepFailed) -> Self {
        Self::Step(Box::new(failed))
    }
}

impl From<spec::Refused> for Error {
    fn from(refused: spec::Refused) -> Self {
        Self::Refused(refused.to_string())
    }
}

impl From<TooLarge> for Error {
    fn from(limits: TooLarge) -> Self {
        Self::Refused(limits.to_string())
    }
}
