//! The states of a process and of a container's freezer, as two pure transition tables. `lifecycle` combines
//! them.
//!
//! ```text
//! Creating ─Created─▶ Created ─Start─▶ Starting ─Started─▶ Running ─Exited─▶ Stopped
//!                        ▲                │   │                                 ▲
//!                        └──StartFailed───┘   ├─Exited─▶ Exiting ─Started───────┤
//!                        │                    └──────────NeverRan───────────────┤
//!                        └────────────────Exited────────────────────────────────┘
//!
//! Thawed ─Pause─▶ Freezing ─Done─▶ Frozen ─Resume─▶ Thawing ─Done─▶ Thawed
//! ```
//! `Exiting`: the exit is known before the reply to Start, so that TaskStart still precedes TaskExit. An init
//! process that could not be started still waits for its start; an exec process that could not be started is
//! over (`NeverRan`).

/// A process's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskState {
    /// Create is not answered yet.
    Creating,
    /// Init waits for its start notification; an exec process is registered, and unknown to the guest.
    Created,
    /// The guest was asked to run the command.
    Starting,
    /// It exited before the guest answered the start.
    Exiting,
    /// The command runs.
    Running,
    /// It has exited.
    Stopped,
}

/// An event in a process's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The guest created the container.
    Created,
    /// The caller called Start.
    Start,
    /// The command runs.
    Started,
    /// The guest could not start init.
    StartFailed,
    /// The guest could not run the command of an exec process.
    NeverRan,
    /// The process exited, or the VM ended.
    Exited,
}

impl TaskState {
    /// The state after `input`; None if that is not possible in this state.
    #[must_use]
    pub fn next(self, input: Input) -> Option<Self> {
        match (self, input) {
            (Self::Creating, Input::Created) | (Self::Starting, Input::StartFailed) => Some(Self::Created),
            (Self::Created, Input::Start) => Some(Self::Starting),
            (Self::Starting, Input::Started) => Some(Self::Running),
            (Self::Starting, Input::Exited) => Some(Self::Exiting),
            (Self::Created | Self::Running, Input::Exited)
            | (Self::Exiting, Input::Started | Input::StartFailed)
            | (Self::Starting | Self::Exiting, Input::NeverRan) => Some(Self::Stopped),
            _ => None,
        }
    }

    /// Whether the process may still exit.
    #[must_use]
    pub fn may_exit(self) -> bool {
        matches!(self, Self::Created | Self::Starting | Self::Running)
    }

    /// Whether its command runs or is being started, or its exit is not reported yet.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Exiting | Self::Running)
    }

    /// Whether the process can be deleted.
    #[must_use]
    pub fn may_delete(self) -> bool {
        matches!(self, Self::Created | Self::Stopped)
    }

    /// The state as an error message names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting | Self::Exiting => "being started",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// Whether a container's processes are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freeze {
    /// They run.
    Thawed,
    /// They are being frozen.
    Freezing,
    /// They are frozen.
    Frozen,
    /// They are being thawed.
    Thawing,
}

/// An event for a container's freezer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FreezeInput {
    /// The caller called Pause.
    Pause,
    /// The caller called Resume.
    Resume,
    /// The guest has frozen or thawed them.
    Done,
    /// The guest could not.
    Failed,
}

impl Freeze {
    /// The state after `input`; None if that is not possible in this state.
    #[must_use]
    pub fn next(self, input: FreezeInput) -> Option<Self> {
        match (self, input) {
            (Self::Thawed, FreezeInput::Pause) => Some(Self::Freezing),
            (Self::Frozen, FreezeInput::Resume) => Some(Self::Thawing),
            (Self::Freezing, FreezeInput::Done) | (Self::Thawing, FreezeInput::Failed) => Some(Self::Frozen),
            (Self::Freezing, FreezeInput::Failed) | (Self::Thawing, FreezeInput::Done) => Some(Self::Thawed),
            _ => None,
        }
    }

    /// The state as an error message names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Thawed => "running",
            Self::Freezing => "being paused",
            Self::Frozen => "paused",
            Self::Thawing => "being resumed",
        }
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
    fn from_create_to_exit() {
        use Input::{Created, Exited, Start, Started};
        assert_eq!(
            after(&[Created, Start, Started, Exited]),
            Some(TaskState::Stopped)
        );
        assert_eq!(after(&[Created, Exited]), Some(TaskState::Stopped));
    }

    #[test]
    fn an_exit_before_the_reply_to_start_waits_for_it() {
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
            assert_eq!(state.may_exit(), ends, "{state:?}");
        }
    }

    #[test]
    fn only_processes_that_do_not_run_can_be_deleted() {
        for state in STATES {
            let may = matches!(state, TaskState::Created | TaskState::Stopped);
            assert_eq!(state.may_delete(), may, "{state:?}");
        }
    }

    #[test]
    fn an_exec_that_never_ran_is_over() {
        use Input::{Exited, NeverRan, Start, Started};
        let after = |inputs: &[Input]| {
            inputs
                .iter()
                .try_fold(TaskState::Created, |state, input| state.next(*input))
        };
        assert_eq!(after(&[Start, NeverRan]), Some(TaskState::Stopped));
        assert_eq!(after(&[Start, Exited, NeverRan]), Some(TaskState::Stopped));
        for inputs in [
            &[NeverRan] as &[_],
            &[Start, Started, NeverRan],
            &[Start, NeverRan, Start],
        ] {
            assert_eq!(after(inputs), None, "{inputs:?}");
        }
    }

    #[test]
    fn a_failed_freeze_or_thaw_changes_nothing() {
        use FreezeInput::{Done, Failed, Pause, Resume};
        for (inputs, want) in [
            (&[Pause] as &[_], Some(Freeze::Freezing)),
            (&[Pause, Done], Some(Freeze::Frozen)),
            (&[Pause, Failed], Some(Freeze::Thawed)),
            (&[Pause, Done, Resume], Some(Freeze::Thawing)),
            (&[Pause, Done, Resume, Done], Some(Freeze::Thawed)),
            (&[Pause, Done, Resume, Failed], Some(Freeze::Frozen)),
            (&[Resume], None),
            (&[Done], None),
            (&[Pause, Pause], None),
            (&[Pause, Resume], None),
            (&[Pause, Done, Pause], None),
        ] {
            let after = inputs
                .iter()
                .try_fold(Freeze::Thawed, |state, input| state.next(*input));
            assert_eq!(after, want, "{inputs:?}");
        }
    }
}
