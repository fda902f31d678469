//! A container's life as a table, without I/O.
//!
//! ```text
//! Created ──start──▶ Running ──pause──▶ Paused
//!    │ └────exit──┐     │ exit ◀─resume─┘ │
//!  delete         ▼     ▼                 │ exit
//!    │          Stopped ◀─────────────────┘
//!    ▼             │ delete
//! Deleted ◀────────┘            a delete that failed halfway is repeated
//! ```
//! A created container is deleted by ending it first, so that `Created ─delete─▶ Deleted` needs no exit of its own.

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its init process waits at the gate.
    Created,
    /// Its init process runs the command.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its init process has ended.
    Stopped,
    /// Its remains are being removed.
    Deleted,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The gate is opened.
    Start,
    /// Its processes are frozen.
    Pause,
    /// They go on.
    Resume,
    /// Init has ended.
    Exit,
    /// It is to be removed.
    Delete,
}

impl State {
    /// The state after `event`; None where that can't happen or is not allowed.
    pub fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Created, Event::Start) | (Self::Paused, Event::Resume) => Some(Self::Running),
            (Self::Running, Event::Pause) => Some(Self::Paused),
            (Self::Created | Self::Running | Self::Paused, Event::Exit) => Some(Self::Stopped),
            (Self::Deleted, Event::Exit) => Some(Self::Deleted),
            (Self::Created | Self::Stopped | Self::Deleted, Event::Delete) => Some(Self::Deleted),
            (Self::Running | Self::Paused | Self::Stopped | Self::Deleted, Event::Start)
            | (Self::Created | Self::Paused | Self::Stopped | Self::Deleted, Event::Pause)
            | (Self::Created | Self::Running | Self::Stopped | Self::Deleted, Event::Resume)
            | (Self::Stopped, Event::Exit)
            | (Self::Running | Self::Paused, Event::Delete) => None,
        }
    }

    /// The state's name, as in an error.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ordinary_life() {
        let life = [Event::Start, Event::Exit, Event::Delete];
        let end = life
            .iter()
            .try_fold(State::Created, |state, event| state.after(*event));
        assert_eq!(end, Some(State::Deleted));
    }

    #[test]
    fn a_paused_container_goes_on_or_ends() {
        assert_eq!(State::Running.after(Event::Pause), Some(State::Paused));
        assert_eq!(State::Paused.after(Event::Resume), Some(State::Running));
        assert_eq!(State::Paused.after(Event::Exit), Some(State::Stopped));
        assert_eq!(State::Paused.after(Event::Pause), None);
        assert_eq!(State::Paused.after(Event::Delete), None);
        assert_eq!(State::Running.after(Event::Resume), None);
        assert_eq!(State::Created.after(Event::Pause), None);
    }

    #[test]
    fn what_is_not_allowed() {
        assert_eq!(State::Running.after(Event::Delete), None);
        assert_eq!(State::Running.after(Event::Start), None);
        assert_eq!(State::Stopped.after(Event::Start), None);
        assert_eq!(State::Stopped.after(Event::Exit), None);
        assert_eq!(State::Deleted.after(Event::Start), None);
    }

    #[test]
    fn a_created_container_may_be_deleted_and_a_delete_repeated() {
        assert_eq!(State::Created.after(Event::Delete), Some(State::Deleted));
        assert_eq!(State::Deleted.after(Event::Exit), Some(State::Deleted));
        assert_eq!(State::Deleted.after(Event::Delete), Some(State::Deleted));
    }
}
