//! The states of a worker and what each event does in each of them. Pure; the thread carries out the actions.
//!
//! ```text
//!            activate                a DataPath method fails
//!   Idle ───────────────▶ Active ─────────────────────────▶ Failed
//!    ▲ │                    ▲ │                               │
//!    │ └─ activate, ─▶ Held ┘ │ reset                         │ reset
//!    │    paused     resume   │                               │
//!    └──────── reset ─────────┴───────────────────────────────┘
//! ```
//! Pause and resume change no phase but Held. A paused worker carries out commands and does nothing else.

/// What the worker has of the device's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: the driver has not set DRIVER_OK.
    Idle,
    /// Queues that it has not started to serve, because it is paused.
    Held,
    /// Queues that it serves.
    Active,
    /// Nothing: the data path failed and the driver must reset the device.
    Failed,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifecycle {
    pub phase: Phase,
    pub paused: bool,
}

/// What changes the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The driver set DRIVER_OK.
    Activate,
    /// The driver resets the device.
    Reset,
    /// The VM is being paused.
    Pause,
    /// The VM continues.
    Resume,
    /// A method of the data path failed.
    Fault,
}

/// What the thread must do about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Start to serve the queues.
    Start,
    /// Keep the queues until they are started or reset.
    Hold,
    /// Stop the data path and drop the queues.
    Stop,
    /// Drop the queues, which were not started.
    Drop,
    /// Drop the new queues and report that the device has queues already.
    Refuse,
}

impl Lifecycle {
    /// The state of a new worker.
    pub const NEW: Self = Self {
        phase: Phase::Idle,
        paused: false,
    };

    /// The next state after `event`, and what to do.
    pub fn on(self, event: Event) -> (Self, Action) {
        let Self { phase, paused } = self;
        let (phase, paused, action) = match (event, phase) {
            (Event::Activate, Phase::Idle) if paused => (Phase::Held, paused, Action::Hold),
            (Event::Activate, Phase::Idle) => (Phase::Active, paused, Action::Start),
            (Event::Activate, Phase::Held | Phase::Active | Phase::Failed) => (phase, paused, Action::Refuse),
            (Event::Reset, Phase::Active) => (Phase::Idle, paused, Action::Stop),
            (Event::Reset, Phase::Held) => (Phase::Idle, paused, Action::Drop),
            (Event::Reset, Phase::Idle | Phase::Failed) => (Phase::Idle, paused, Action::Nothing),
            (Event::Pause, _) => (phase, true, Action::Nothing),
            (Event::Resume, Phase::Held) => (Phase::Active, false, Action::Start),
            (Event::Resume, Phase::Idle | Phase::Active | Phase::Failed) => (phase, false, Action::Nothing),
            (Event::Fault, Phase::Active) => (Phase::Failed, paused, Action::Stop),
            (Event::Fault, Phase::Idle | Phase::Held | Phase::Failed) => (phase, paused, Action::Nothing),
        };
        (Self { phase, paused }, action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 4] = [Phase::Idle, Phase::Held, Phase::Active, Phase::Failed];

    #[test]
    fn every_event_in_every_state() {
        use Action::{Drop, Hold, Nothing, Refuse, Start, Stop};
        use Phase::{Active, Failed, Held, Idle};
        // For each event: the next phase and the action in Idle, Held, Active and Failed.
        type Row = [(Phase, Action); 4];
        #[rustfmt::skip]
        let table: [(Event, bool, Row); 9] = [
            (Event::Activate, false, [(Active, Start), (Held, Refuse), (Active, Refuse), (Failed, Refuse)]),
            (Event::Activate, true, [(Held, Hold), (Held, Refuse), (Active, Refuse), (Failed, Refuse)]),
            (Event::Reset, false, [(Idle, Nothing), (Idle, Drop), (Idle, Stop), (Idle, Nothing)]),
            (Event::Reset, true, [(Idle, Nothing), (Idle, Drop), (Idle, Stop), (Idle, Nothing)]),
            (Event::Pause, false, PHASES.map(|phase| (phase, Nothing))),
            (Event::Pause, true, PHASES.map(|phase| (phase, Nothing))),
            (Event::Resume, true, [(Idle, Nothing), (Active, Start), (Active, Nothing), (Failed, Nothing)]),
            (Event::Resume, false, [(Idle, Nothing), (Active, Start), (Active, Nothing), (Failed, Nothing)]),
            (Event::Fault, false, [(Idle, Nothing), (Held, Nothing), (Failed, Stop), (Failed, Nothing)]),
        ];
        for (event, paused, row) in table {
            let paused_after = match event {
                Event::Pause => true,
                Event::Resume => false,
                Event::Activate | Event::Reset | Event::Fault => paused,
            };
            for (phase, (next, action)) in PHASES.into_iter().zip(row) {
                let expected = Lifecycle {
                    phase: next,
                    paused: paused_after,
                };
                let lifecycle = Lifecycle { phase, paused };
                assert_eq!(
                    lifecycle.on(event),
                    (expected, action),
                    "{event:?} in {lifecycle:?}"
                );
            }
        }
    }

    /// Whatever the order of events: queues are started at most once before they are stopped, never while
    /// paused, and held queues are dropped or started.
    #[test]
    fn no_sequence_of_six_events_starts_paused_or_twice() {
        const EVENTS: [Event; 5] = [
            Event::Activate,
            Event::Reset,
            Event::Pause,
            Event::Resume,
            Event::Fault,
        ];
        for sequence in 0..EVENTS.len().pow(6) {
            let (mut lifecycle, mut started, mut held) = (Lifecycle::NEW, false, false);
            for position in 0..6 {
                let event = EVENTS[sequence / EVENTS.len().pow(position) % EVENTS.len()];
                let (next, action) = lifecycle.on(event);
                match action {
                    Action::Start => {
                        assert!(!started && !next.paused, "{sequence}: {event:?} in {lifecycle:?}");
                        (started, held) = (true, false);
                    }
                    Action::Stop => {
                        assert!(started, "{sequence}: {event:?} in {lifecycle:?}");
                        started = false;
                    }
                    Action::Hold => {
                        assert!(!held && !started && next.paused);
                        held = true;
                    }
                    Action::Drop => {
                        assert!(held);
                        held = false;
                    }
                    Action::Nothing | Action::Refuse => {}
                }
                assert_eq!(started, next.phase == Phase::Active);
                assert_eq!(held, next.phase == Phase::Held);
                lifecycle = next;
            }
        }
    }
}
