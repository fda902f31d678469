//! What a process may do when, and what a container: two tables without I/O, used by the sandbox's owner.
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
//! `Exiting`: the end is known before the reply to Start, so that TaskStart still goes out before TaskExit. An init that
//! could not be started still waits at its gate; an exec that could not is over (`NeverRan`).

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskState {
    /// Create has not been answered yet.
    Creating,
    /// Init waits at its gate; an exec is known by its name alone.
    Created,
    /// The gate is being opened, or the exec's command being run.
    Starting,
    /// Ended while it was being started.
    Exiting,
    /// The command runs.
    Running,
    /// It has ended.
    Stopped,
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The guest has made the container.
    Created,
    /// containerd calls Start.
    Start,
    /// The command runs.
    Started,
    /// The guest could not open init's gate.
    StartFailed,
    /// The guest could not run the exec's command.
    NeverRan,
    /// It has ended, or the VM.
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
            | (Self::Exiting, Input::Started | Input::StartFailed)
            | (Self::Starting | Self::Exiting, Input::NeverRan) => Some(Self::Stopped),
            _ => None,
        }
    }

    /// Whether the end of the process is still to come.
    #[must_use]
    pub fn may_exit(self) -> bool {
        matches!(self, Self::Created | Self::Starting | Self::Running)
    }

    /// Whether a command of it runs, is about to, or its end is not told yet.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Exiting | Self::Running)
    }

    /// Whether the process can be deleted.
    #[must_use]
    pub fn may_delete(self) -> bool {
        matches!(self, Self::Created | Self::Stopped)
    }

    /// As an error tells it.
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
    /// None runs.
    Frozen,
    /// They are being thawed.
    Thawing,
}

/// What happens to a container that is frozen and thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FreezeInput {
    /// containerd calls Pause.
    Pause,
    /// containerd calls Resume.
    Resume,
    /// The guest has done it.
    Done,
    /// The guest could not.
    Failed,
}

impl Freeze {
    /// The state after `input`; None where it can't happen in this state.
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

    /// As an error tells it.
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
            assert_eq!(state.may_exit(), ends, "{state:?}");
        }
    }

    #[test]
    fn only_what_does_not_run_is_deleted() {
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
    fn what_is_frozen_is_thawed_and_what_failed_stays() {
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
