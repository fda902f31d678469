//! The state of one process in a container's state machine.

use super::Rejected;
use crate::container::TaskState;
use crate::exit::Exit;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessState {
    /// Its place in the table of `task_state`.
    pub state: TaskState,
    /// How it ended, once that is known; it may not be reported yet.
    pub(super) exit: Option<Exit>,
    /// All output is written, or its deadline has passed.
    pub(super) drained: bool,
    /// Delete was called and is not answered.
    pub(super) deleting: bool,
}

impl ProcessState {
    pub(super) fn new(state: TaskState) -> Self {
        Self {
            state,
            exit: None,
            drained: false,
            deleting: false,
        }
    }

    /// How it ended, once that was reported.
    #[must_use]
    pub fn end(&self) -> Option<Exit> {
        self.exit.filter(|_| self.state == TaskState::Stopped)
    }

    /// How it ended, though that may not be reported yet.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Delete was called and is not answered.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.deleting
    }

    pub(super) fn rejected(&self) -> Rejected {
        Rejected {
            state: self.state.name(),
        }
    }
}
