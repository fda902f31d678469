//! What a call of containerd's can be answered with instead of success. `service` turns it into a ttrpc status.

use crate::process::Name;

/// A step that failed, told so that one knows what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailed {
    /// What was being done.
    pub step: String,
    /// Why it failed, on which object.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
    /// The last lines of the guest's console, where a guest had been started.
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
    #[error("no task {0}")]
    NoTask(String),
    #[error("no {0}")]
    NoProcess(Name),
    #[error("process already finished: {0} is stopped")]
    Finished(Name),
    #[error("{0} already exists")]
    Exists(Name),
    #[error("{name} is {state}: it can't be {wanted}")]
    State {
        name: Name,
        state: &'static str,
        wanted: &'static str,
    },
    /// Of a container that is stopped: the kernel's counters went with its processes.
    #[error("no counters: {0} is stopped")]
    NoCounters(Name),
    #[error("{0:?} is no valid id: letters, digits, '.', '_' and '-' only")]
    InvalidId(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NotImplemented(&'static str),
    #[error("{0}")]
    Step(Box<StepFailed>),
    /// The agent's own answer, passed on.
    #[error("{message}")]
    Guest { code: ttrpc::Code, message: String },
    #[error("the sandbox is shutting down")]
    Closing,
}

impl From<StepFailed> for Error {
    fn from(failed: StepFailed) -> Self {
        Self::Step(Box::new(failed))
    }
}
