//! The state machine of a connection: one row per transition.

use super::super::packet::ShutdownFlags as Flags;
use super::super::state::{Action, ConnectionEvent as Event, ConnectionState as State};

/// State, event, next state, action.
type Transition = (State, Event, State, Action);

fn check(transitions: &[Transition]) {
    for (state, event, next, action) in transitions {
        assert_eq!(state.next(*event), (*next, *action), "{state:?} {event:?}");
    }
}

const fn open(guest: Flags, host: Flags) -> State {
    State::Open { guest, host }
}

#[test]
fn a_connecting_connection_waits_for_the_response() {
    let connecting = State::Connecting;
    check(&[
        (connecting, Event::Response, State::OPEN, Action::SendConnectOk),
        (connecting, Event::Reset, State::Closed, Action::Drain),
        (connecting, Event::Rw, State::Closed, Action::ResetAndDrop),
        (
            connecting,
            Event::HostRxClosed,
            State::Closed,
            Action::ResetAndDrop,
        ),
        (connecting, Event::HostTxClosed, connecting, Action::Nothing),
    ]);
}

#[test]
fn packets_of_the_guest_on_an_open_connection() {
    let guest_sent_all = open(Flags::SEND, Flags::NONE);
    let host_takes_nothing = open(Flags::NONE, Flags::RECEIVE);
    check(&[
        (State::OPEN, Event::Rw, State::OPEN, Action::Deliver),
        (guest_sent_all, Event::Rw, State::Closed, Action::ResetAndDrop),
        (host_takes_nothing, Event::Rw, host_takes_nothing, Action::Discard),
        (State::OPEN, Event::Response, State::Closed, Action::ResetAndDrop),
        (State::OPEN, Event::Request, State::Closed, Action::ResetAndDrop),
        (State::OPEN, Event::Reset, State::Closed, Action::Drain),
    ]);
}

#[test]
fn a_guest_shuts_down_one_direction_or_both() {
    let none = Event::Shutdown(Flags::NONE);
    let send = Event::Shutdown(Flags::SEND);
    let receive = Event::Shutdown(Flags::RECEIVE);
    let both = Event::Shutdown(Flags::BOTH);
    let guest_sent_all = open(Flags::SEND, Flags::NONE);
    check(&[
        (State::OPEN, none, State::OPEN, Action::Nothing),
        (
            State::OPEN,
            send,
            guest_sent_all,
            Action::ShutDownHost(Flags::SEND),
        ),
        (State::OPEN, both, State::Closed, Action::ResetAndDrain),
        (guest_sent_all, receive, State::Closed, Action::ResetAndDrain),
        (guest_sent_all, send, guest_sent_all, Action::Nothing),
    ]);
}

#[test]
fn a_host_closes_one_direction_or_both() {
    let sent_all = open(Flags::NONE, Flags::SEND);
    let closed = open(Flags::NONE, Flags::BOTH);
    check(&[
        (
            State::OPEN,
            Event::HostTxClosed,
            sent_all,
            Action::SendShutdown(Flags::SEND),
        ),
        (
            sent_all,
            Event::HostRxClosed,
            closed,
            Action::SendShutdown(Flags::BOTH),
        ),
        (sent_all, Event::HostTxClosed, sent_all, Action::Nothing),
    ]);
}

#[test]
fn a_closed_connection_ignores_events() {
    check(&[(State::Closed, Event::Rw, State::Closed, Action::Nothing)]);
}
