//! The states of a vCPU's thread, as a pure table; [`super`] carries out what a state means.
//!
//! ```text
//!                    ──── Run ────▶             ◀── EINTR ──
//! Confining ──▶ Paused              Interrupted                Running
//!                    ◀─── Pause ───             ── no order ─▶
//! from any state ──▶ Finished    not confined, the VM has ended, or nobody can send orders any more
//! ```

/// What the thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Drops privileges.
    Confining,
    /// Waits for an order. No guest instruction runs, and no access of the guest is half done.
    Paused,
    /// Runs the guest and handles its exits.
    Running,
    /// Looks for an order, and runs the guest if there is none. KVM_RUN has returned EINTR, or was not called
    /// since the thread was paused, so no access of the guest is half done.
    Interrupted,
    /// Exits.
    Finished,
}

/// What happened in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The thread is confined.
    Confined,
    /// The thread can't be confined, or the machine is not built after all.
    NotConfined,
    /// An exit of the guest was handled.
    Handled,
    /// KVM_RUN returned EINTR.
    Interrupted,
    /// The order to run.
    Run,
    /// The order to pause.
    Pause,
    /// The order to show the vCPU was carried out.
    Inspected,
    /// There is no order.
    NoOrder,
    /// No order can come any more.
    NoController,
    /// The VM has an outcome.
    VmEnded,
}

impl State {
    /// The state after `event`.
    pub(super) fn next(self, event: Event) -> Self {
        match (self, event) {
            (Self::Finished, _) | (_, Event::NotConfined | Event::NoController | Event::VmEnded) => {
                Self::Finished
            }
            (Self::Confining, Event::Confined) => Self::Paused,
            // Not to Running: the order after this one may have come before immediate_exit was last cleared.
            (Self::Paused, Event::Run) => Self::Interrupted,
            (Self::Running, Event::Interrupted) => Self::Interrupted,
            (Self::Interrupted, Event::Pause) => Self::Paused,
            (Self::Interrupted, Event::NoOrder) => Self::Running,
            // A second Run or Pause, and events that do not occur in that state.
            (state, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] = [
        State::Confining,
        State::Paused,
        State::Running,
        State::Interrupted,
        State::Finished,
    ];
    const EVENTS: [Event; 10] = [
        Event::Confined,
        Event::NotConfined,
        Event::Handled,
        Event::Interrupted,
        Event::Run,
        Event::Pause,
        Event::Inspected,
        Event::NoOrder,
        Event::NoController,
        Event::VmEnded,
    ];

    #[test]
    fn only_the_listed_events_change_the_state() {
        let changes = [
            (State::Confining, Event::Confined, State::Paused),
            (State::Paused, Event::Run, State::Interrupted),
            (State::Running, Event::Interrupted, State::Interrupted),
            (State::Interrupted, Event::NoOrder, State::Running),
            (State::Interrupted, Event::Pause, State::Paused),
        ];
        let ends = [Event::NotConfined, Event::NoController, Event::VmEnded];
        for state in STATES {
            for event in EVENTS {
                let listed = changes
                    .iter()
                    .find(|(from, on, _)| (*from, *on) == (state, event));
                let expected = match listed {
                    _ if ends.contains(&event) => State::Finished,
                    Some((_, _, to)) => *to,
                    None => state,
                };
                assert_eq!(state.next(event), expected, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn a_vcpu_runs_only_after_the_order_and_pauses_only_when_interrupted() {
        let after = |events: &[Event]| {
            events
                .iter()
                .fold(State::Confining, |state, event| state.next(*event))
        };
        assert_eq!(after(&[Event::Run, Event::Confined]), State::Paused);
        let running = [Event::Confined, Event::Run, Event::NoOrder];
        assert_eq!(after(&running), State::Running);
        // An access that the guest has begun is completed by the KVM_RUN that returns EINTR.
        assert_eq!(after(&[&running[..], &[Event::Pause]].concat()), State::Running);
        let paused = [&running[..], &[Event::Interrupted, Event::Pause]].concat();
        assert_eq!(after(&paused), State::Paused);
        // Pause, Run and Pause were all sent before the thread looked.
        assert_eq!(
            after(&[&paused[..], &[Event::Run, Event::Pause]].concat()),
            State::Paused
        );
    }
}
