//! What a task may do when: a table without I/O, used by the sandbox's owner.
//!
//! ```text
//! Creating ─Created─▶ Created ─Start─▶ Starting ─Started─▶ Running ─Exited─▶ Stopped
//!                        ▲                │   │                                 ▲
//!                        └──StartFailed───┘   └─Exited─▶ Exiting ─Started───────┤
//!                        └────────────────Exited────────────────────────────────┘
//! ```
//! `Exiting`: the end is known before the reply to Start, so that TaskStart still goes out before TaskExit.

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Create has not been answered yet.
    Creating,
    /// Init waits at its gate.
    Created,
    /// The gate is being opened.
    Starting,
    /// Ended while the gate was being opened.
    Exiting,
    /// The command runs.
    Running,
    /// Init has ended.
    Stopped,
}

/// What happens to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The guest has made the container.
    Created,
    /// containerd calls Start.
    Start,
    /// The guest has opened the gate.
    Started,
    /// The guest could not open the gate.
    StartFailed,
    /// Init has ended, or the VM.
    Exited,
}

impl TaskState {
    /// The state after `input`; None where it can't happen in this state.
    #[must_use]
    pub fn next(self, input: Input) -> Option<Self> {
        match (self, input) {
            (Self::Creating, Input::Created) | (Self::Starting, Input::StartFailed) => Some(Self::Created),
            (Self::Created, Input::Start) => Some(Self::Starting),
            (Self::Starting, Input::Started) => Some(Self::Running),
            (Self::Starting, Input::Exited) => Some(Self::Exiting),
            (Self::Created | Self::Running, Input::Exited)
            | (Self::Exiting, Input::Started | Input::StartFailed) => Some(Self::Stopped),
            _ => None,
        }
    }

    /// Whether a signal can reach the task.
    #[must_use]
    pub fn may_kill(self) -> bool {
        matches!(self, Self::Created | Self::Starting | Self::Running)
    }

    /// Whether the task can be deleted.
    #[must_use]
    pub fn may_delete(self) -> bool {
        matches!(self, Self::Created | Self::Stopped)
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting | Self::Exiting => "being started",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [TaskState; 6] = [
        TaskState::Creating,
        TaskState::Created,
        TaskState::Starting,
        TaskState::Exiting,
        TaskState::Running,
        TaskState::Stopped,
    ];

    fn after(inputs: &[Input]) -> Option<TaskState> {
        inputs
            .iter()
            .try_fold(TaskState::Creating, |state, input| state.next(*input))
    }

    #[test]
    fn a_life() {
        use Input::{Created, Exited, Start, Started};
        assert_eq!(
            after(&[Created, Start, Started, Exited]),
            Some(TaskState::Stopped)
        );
        assert_eq!(after(&[Created, Exited]), Some(TaskState::Stopped));
    }

    #[test]
    fn an_end_before_the_reply_to_start_waits_for_it() {
        use Input::{Created, Exited, Start, StartFailed, Started};
        assert_eq!(after(&[Created, Start, Exited]), Some(TaskState::Exiting));
        assert_eq!(
            after(&[Created, Start, Exited, Started]),
            Some(TaskState::Stopped)
        );
        assert_eq!(
            after(&[Created, Start, Exited, StartFailed]),
            Some(TaskState::Stopped)
        );
    }

    #[test]
    fn starts_once_and_ends_once() {
        for state in STATES {
            assert_eq!(
                state.next(Input::Start).is_some(),
                state == TaskState::Created,
                "{state:?}"
            );
            let ends = matches!(
                state,
                TaskState::Created | TaskState::Starting | TaskState::Running
            );
            assert_eq!(state.next(Input::Exited).is_some(), ends, "{state:?}");
            assert_eq!(state.may_kill(), ends, "{state:?}");
        }
    }

    #[test]
    fn only_what_does_not_run_is_deleted() {
        for state in STATES {
            let may = matches!(state, TaskState::Created | TaskState::Stopped);
            assert_eq!(state.may_delete(), may, "{state:?}");
        }
    }
}
