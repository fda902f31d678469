//! A container's lifecycle: two tables without I/O, with the names that the shim's `task_state` has.
//! `Container` holds one [`Lifecycle`] under its lock and applies every input to it.
//!
//! ```text
//!                      ┌──StartFailed──┐
//!                      ▼               │
//! Creating ─Created─▶ Created ─Start─▶ Starting ─Started─▶ Running ─Exited─▶ Stopped
//!    │                 │ │               │                                   ▲   │
//!    │                 │ └────Exited─────┴───────────────────────────────────┤   │
//!    └──────Exited─────┼─────────────────────────────────────────────────────┘   │
//!                      └──────────Delete──────────▶ Deleting ◀────────Delete─────┘
//!
//! Thawed ─Pause─▶ Freezing ─Done─▶ Frozen ─Resume─▶ Thawing ─Done─▶ Thawed
//! ```
//! Deleting a container that was never started kills its init, whose exit then arrives in `Deleting`. A
//! deletion that failed may be repeated: `Deleting ─Delete─▶ Deleting`.

/// The state of a container's init process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// CreateContainer has not been answered yet.
    Creating,
    /// Init waits for the start notification.
    Created,
    /// Init is being notified.
    Starting,
    /// Init runs the container's command.
    Running,
    /// Init has exited.
    Stopped,
    /// The container's cgroup and directories are being removed.
    Deleting,
}

/// An event that concerns a container's init process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The container is complete: init waits, its streams are attached.
    Created,
    /// The host calls StartContainer.
    Start,
    /// Init was notified.
    Started,
    /// Init could not be notified and still waits.
    StartFailed,
    /// The reaper has collected init's exit status.
    Exited,
    /// The host calls DeleteContainer.
    Delete,
}

impl TaskState {
    fn next(self, input: Input) -> Option<Self> {
        match (self, input) {
            (Self::Creating, Input::Created) | (Self::Starting, Input::StartFailed) => Some(Self::Created),
            (Self::Created, Input::Start) => Some(Self::Starting),
            (Self::Starting, Input::Started) => Some(Self::Running),
            (Self::Creating | Self::Created | Self::Starting | Self::Running, Input::Exited) => {
                Some(Self::Stopped)
            }
            (Self::Created | Self::Stopped | Self::Deleting, Input::Delete)
            | (Self::Deleting, Input::Exited) => Some(Self::Deleting),
            _ => None,
        }
    }
}

/// The state of a container's freezer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// The container's processes run.
    Thawed,
    /// The cgroup is being frozen.
    Freezing,
    /// No process of the container runs.
    Frozen,
    /// The cgroup is being thawed.
    Thawing,
}

/// An event that concerns a container's freezer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeInput {
    /// The host calls PauseContainer.
    Pause,
    /// The host calls ResumeContainer.
    Resume,
    /// The kernel has frozen, or thawed, all processes.
    Done,
    /// Freezing or thawing failed and was undone.
    Failed,
}

impl Freeze {
    fn next(self, input: FreezeInput) -> Option<Self> {
        match (self, input) {
            (Self::Thawed, FreezeInput::Pause) => Some(Self::Freezing),
            (Self::Frozen, FreezeInput::Resume) => Some(Self::Thawing),
            (Self::Freezing, FreezeInput::Done) | (Self::Thawing, FreezeInput::Failed) => Some(Self::Frozen),
            (Self::Freezing, FreezeInput::Failed) | (Self::Thawing, FreezeInput::Done) => Some(Self::Thawed),
            _ => None,
        }
    }
}

/// Both states of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifecycle {
    pub task: TaskState,
    pub freeze: Freeze,
}

impl Lifecycle {
    /// The lifecycle of a container that is being created.
    pub fn new() -> Self {
        Self {
            task: TaskState::Creating,
            freeze: Freeze::Thawed,
        }
    }

    /// The states after `input`; None if the input is not allowed in the present ones.
    pub fn next(self, input: Input) -> Option<Self> {
        let task = self.task.next(input)?;
        Some(Self { task, ..self })
    }

    /// The states after `input`. Pause and Resume need a running container; the result of a freeze is
    /// accepted in any state, since init may exit in the meantime.
    pub fn next_freeze(self, input: FreezeInput) -> Option<Self> {
        match input {
            FreezeInput::Pause | FreezeInput::Resume if self.task != TaskState::Running => None,
            FreezeInput::Pause | FreezeInput::Resume | FreezeInput::Done | FreezeInput::Failed => {
                let freeze = self.freeze.next(input)?;
                Some(Self { freeze, ..self })
            }
        }
    }

    /// Whether an exec process may be started: the namespaces exist from creation on.
    pub fn accepts_exec(self) -> bool {
        matches!(self.task, TaskState::Created | TaskState::Running) && self.freeze == Freeze::Thawed
    }

    /// Whether limits may be changed.
    pub fn accepts_update(self) -> bool {
        matches!(
            self.task,
            TaskState::Created | TaskState::Starting | TaskState::Running
        )
    }

    /// The state for an error message: "it is …".
    pub fn name(self) -> &'static str {
        match (self.task, self.freeze) {
            (TaskState::Creating, _) => "being created",
            (TaskState::Created, _) => "created",
            (TaskState::Starting, _) => "being started",
            (TaskState::Running, Freeze::Thawed) => "running",
            (TaskState::Running, Freeze::Freezing) => "being paused",
            (TaskState::Running, Freeze::Frozen) => "paused",
            (TaskState::Running, Freeze::Thawing) => "being resumed",
            (TaskState::Stopped, _) => "stopped",
            (TaskState::Deleting, _) => "being deleted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FreezeInput::{Done, Failed, Pause, Resume};
    use super::Input::{Created, Delete, Exited, Start, StartFailed, Started};
    use super::*;

    const TASK_STATES: [TaskState; 6] = [
        TaskState::Creating,
        TaskState::Created,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Stopped,
        TaskState::Deleting,
    ];

    fn after(inputs: &[Input]) -> Option<Lifecycle> {
        inputs
            .iter()
            .try_fold(Lifecycle::new(), |lifecycle, input| lifecycle.next(*input))
    }

    fn after_freeze(inputs: &[FreezeInput]) -> Option<Lifecycle> {
        inputs
            .iter()
            .try_fold(after(&[Created, Start, Started])?, |lifecycle, input| {
                lifecycle.next_freeze(*input)
            })
    }

    #[test]
    fn each_sequence_ends_in_its_state() {
        for (inputs, want) in [
            (&[Created] as &[_], TaskState::Created),
            (&[Created, Start, Started], TaskState::Running),
            (&[Created, Start, Started, Exited], TaskState::Stopped),
            (&[Created, Start, Started, Exited, Delete], TaskState::Deleting),
            (&[Created, Start, StartFailed], TaskState::Created),
            (&[Created, Start, Exited], TaskState::Stopped),
            (&[Created, Exited], TaskState::Stopped),
            (&[Exited], TaskState::Stopped),
            (&[Created, Delete, Exited, Delete], TaskState::Deleting),
        ] {
            let state = after(inputs).map(|lifecycle| lifecycle.task);
            assert_eq!(state, Some(want), "{inputs:?}");
        }
    }

    #[test]
    fn each_input_is_accepted_in_these_states_only() {
        use TaskState::{Creating, Deleting, Running, Starting, Stopped};
        for (input, states) in [
            (Created, &[Creating] as &[_]),
            (Start, &[TaskState::Created]),
            (Started, &[Starting]),
            (StartFailed, &[Starting]),
            (
                Exited,
                &[Creating, TaskState::Created, Starting, Running, Deleting],
            ),
            (Delete, &[TaskState::Created, Stopped, Deleting]),
        ] {
            for state in TASK_STATES {
                let is_accepted = state.next(input).is_some();
                assert_eq!(is_accepted, states.contains(&state), "{state:?} {input:?}");
            }
        }
    }

    #[test]
    fn a_failed_freeze_leaves_the_state_before_it() {
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
            let freeze = after_freeze(inputs).map(|lifecycle| lifecycle.freeze);
            assert_eq!(freeze, want, "{inputs:?}");
        }
    }

    #[test]
    fn only_a_running_container_is_paused_and_an_exit_ends_the_pause() {
        for state in TASK_STATES {
            let lifecycle = Lifecycle {
                task: state,
                freeze: Freeze::Thawed,
            };
            let may_pause = lifecycle.next_freeze(Pause).is_some();
            assert_eq!(may_pause, state == TaskState::Running, "{state:?}");
        }
        let paused = after_freeze(&[Pause, Done]).unwrap();
        assert_eq!(paused.next(Delete), None);
        let exited = paused.next(Exited).unwrap();
        assert_eq!((exited.name(), exited.next_freeze(Resume)), ("stopped", None));
        let exited = after_freeze(&[Pause]).and_then(|lifecycle| lifecycle.next(Exited));
        assert!(exited.unwrap().next_freeze(Failed).is_some());
    }

    #[test]
    fn execs_and_updates_need_a_container_that_has_not_exited() {
        for (lifecycle, exec, update) in [
            (after(&[]), false, false),
            (after(&[Created]), true, true),
            (after_freeze(&[]), true, true),
            (after_freeze(&[Pause]), false, true),
            (after_freeze(&[Pause, Done]), false, true),
            (after_freeze(&[Pause, Done, Resume]), false, true),
            (after(&[Created, Exited]), false, false),
            (after(&[Created, Delete]), false, false),
        ] {
            let lifecycle = lifecycle.unwrap();
            let got = (lifecycle.accepts_exec(), lifecycle.accepts_update());
            assert_eq!(got, (exec, update), "{lifecycle:?}");
        }
    }
}
