//! The machine, walked through every state that it can reach with two exec processes, and single stories.

use std::collections::BTreeSet;

use super::*;

const INIT_EXIT: Exit = exit(1);
const EXEC_EXIT: Exit = exit(2);
const LOST: Exit = exit(137);
const NEVER_RAN: Exit = exit(255);

const fn exit(status: u32) -> Exit {
    Exit {
        status,
        at_ns: 0,
        oom_kills: 0,
    }
}

/// Every event, for init and for two exec processes.
fn events() -> Vec<Event> {
    let mut events = vec![
        Event::Created,
        Event::CreateFailed,
        Event::StartFailed,
        Event::InitExitHoldExpired(LOST),
        Event::InitOutputStalled,
        Event::PauseCalled,
        Event::ResumeCalled,
        Event::FreezeDone,
        Event::FreezeFailed,
        Event::VmEnded(LOST),
    ];
    for exec in ["", "a", "b"].map(str::to_owned) {
        let exit = if exec.is_empty() { INIT_EXIT } else { EXEC_EXIT };
        events.extend([
            Event::ExecAdded(exec.clone()),
            Event::StartCalled(exec.clone()),
            Event::Started(exec.clone()),
            Event::ExecFailed(exec.clone(), NEVER_RAN),
            Event::Exited(exec.clone(), exit),
            Event::OutputDrained(exec.clone()),
            Event::DeleteCalled(exec),
        ]);
    }
    events
}

/// Every state that can be reached from the first one; removed containers are not states.
fn reachable() -> BTreeSet<Lifecycle> {
    let mut seen = BTreeSet::from([Lifecycle::creating()]);
    let mut left: Vec<Lifecycle> = seen.iter().cloned().collect();
    while let Some(state) = left.pop() {
        for event in events() {
            let mut next = state.clone();
            match next.on(event) {
                Ok(actions) if actions.contains(&Action::RemoveContainer) => {}
                Ok(_) if seen.insert(next.clone()) => left.push(next),
                Ok(_) | Err(_) => {}
            }
        }
    }
    seen
}

fn ids(state: &Lifecycle) -> Vec<String> {
    std::iter::once(String::new())
        .chain(state.execs.keys().cloned())
        .collect()
}

/// What must hold for one step, whatever the state.
fn check_step(before: &Lifecycle, event: &Event, after: &Lifecycle, actions: &[Action]) {
    let reported = |exec: &str| {
        let is_report = |action: &&Action| matches!(action, Action::ReportExit(of, _) if of == exec);
        actions.iter().filter(is_report).count()
    };
    for exec in ids(before) {
        let was_stopped = before
            .process(&exec)
            .is_some_and(|process| process.end().is_some());
        let is_stopped = after
            .process(&exec)
            .is_some_and(|process| process.end().is_some());
        let never_ran = matches!(event, Event::ExecFailed(of, _) if *of == exec);
        let want = usize::from(!was_stopped && is_stopped && !never_ran);
        assert_eq!(reported(&exec), want, "{exec:?} {event:?}\n{before:?}\n{after:?}");
    }
    let had_expired = before.pending_init_exit.is_some_and(|held| !held.awaits_execs);
    if reported("") == 1 && !had_expired && !matches!(event, Event::InitExitHoldExpired(_)) {
        let live = after.has_live_execs();
        // An init that ended before its Start was answered is reported with that answer.
        let after_start =
            matches!(event, Event::Started(of) if of.is_empty()) || *event == Event::StartFailed;
        assert!(!live || after_start, "init first: {event:?}\n{before:?}");
    }
    let position = |want: &Action| actions.iter().position(|action| action == want);
    for (at, action) in actions.iter().enumerate() {
        if let Action::ReportExit(exec, exit) = action {
            let started = position(&Action::ReportStarted(exec.clone()));
            assert!(
                started.is_none_or(|started| started < at),
                "exit before start: {actions:?}"
            );
            let waiters = position(&Action::AnswerWaiters(exec.clone(), *exit));
            assert!(
                waiters.is_some_and(|waiters| waiters > at),
                "waiters first: {actions:?}"
            );
        }
    }
    if actions.contains(&Action::RemoveContainer) {
        let may = before.init.state == TaskState::Creating || after.init.end().is_some();
        assert!(may, "removed while alive: {event:?}\n{before:?}");
    }
    if let Some(held) = after.pending_init_exit {
        let awaits_execs = held.awaits_execs && after.has_live_execs();
        let awaits_output = held.awaits_output && !after.init.drained;
        assert!(
            awaits_execs || awaits_output,
            "init's exit is held for nothing: {event:?}\n{before:?}"
        );
    }
}

#[test]
fn every_step_keeps_the_rules() {
    let states = reachable();
    assert!(states.len() > 1000, "{}", states.len());
    for before in &states {
        for event in events() {
            let mut after = before.clone();
            match after.on(event.clone()) {
                Ok(actions) => check_step(before, &event, &after, &actions),
                Err(_) => assert_eq!(*before, after, "a rejected {event:?} changed the state"),
            }
        }
    }
}

/// The VM ends and every answer that is due comes: then Delete must be answered.
#[test]
fn from_every_state_a_container_can_be_removed() {
    for begin in reachable() {
        let mut state = begin.clone();
        let mut actions = Vec::new();
        let mut feed = |state: &mut Lifecycle, event| {
            if !actions.contains(&Action::RemoveContainer) {
                actions.extend(state.on(event).unwrap_or_default());
            }
        };
        feed(&mut state, Event::VmEnded(LOST));
        if state.init.state == TaskState::Creating {
            assert_eq!(state.on(Event::CreateFailed), Ok(vec![Action::RemoveContainer]));
            continue;
        }
        for exec in ids(&state) {
            if exec.is_empty() {
                feed(&mut state, Event::StartFailed);
            } else {
                feed(&mut state, Event::ExecFailed(exec, NEVER_RAN));
            }
        }
        if state.init.state == TaskState::Created {
            // It waits for its start in a VM that has ended.
            feed(&mut state, Event::VmEnded(LOST));
        }
        feed(&mut state, Event::InitExitHoldExpired(LOST));
        feed(&mut state, Event::InitOutputStalled);
        feed(&mut state, Event::DeleteCalled(String::new()));
        // The output's deadline passes, if it runs: it does in a state in which Delete waits for output
        // already.
        let waits = begin.init.deleting && begin.init.end().is_some();
        if waits || actions.contains(&Action::LimitOutput(String::new())) {
            actions.extend(state.on(Event::OutputDrained(String::new())).unwrap_or_default());
        }
        let removals = actions
            .iter()
            .filter(|action| **action == Action::RemoveContainer);
        assert_eq!(removals.count(), 1, "{begin:?}\n{state:?}\n{actions:?}");
    }
}

/// Feeds events that must be possible; gives the last one's actions.
fn story(events: impl IntoIterator<Item = Event>) -> (Lifecycle, Vec<Action>) {
    let mut state = Lifecycle::creating();
    let mut actions = Vec::new();
    for event in events {
        actions = state
            .on(event.clone())
            .unwrap_or_else(|error| panic!("{event:?}: {error:?}"));
    }
    (state, actions)
}

fn init() -> String {
    String::new()
}

fn running() -> Vec<Event> {
    vec![Event::Created, Event::StartCalled(init()), Event::Started(init())]
}

fn with_exec() -> Vec<Event> {
    let exec = [
        Event::ExecAdded("a".into()),
        Event::StartCalled("a".into()),
        Event::Started("a".into()),
    ];
    running().into_iter().chain(exec).collect()
}

#[test]
fn init_is_reported_after_its_exec_processes() {
    let mut events = with_exec();
    events.push(Event::Exited(init(), INIT_EXIT));
    let (mut state, actions) = story(events);
    let want = [
        Action::CloseStdin(init()),
        Action::AwaitOutput(init()),
        Action::HoldInitExit,
    ];
    assert_eq!(actions, want);
    assert!(!state.is_running() && !state.accepts_exec() && state.name() == "stopped");
    assert_eq!(state.on(Event::OutputDrained(init())), Ok(vec![]));
    let actions = state.on(Event::Exited("a".into(), EXEC_EXIT)).unwrap();
    let reports: Vec<&Action> = actions
        .iter()
        .filter(|action| matches!(action, Action::ReportExit(..)))
        .collect();
    let want = [
        Action::ReportExit("a".into(), EXEC_EXIT),
        Action::ReportExit(init(), INIT_EXIT),
    ];
    assert_eq!(reports, want.iter().collect::<Vec<_>>());
}

#[test]
fn a_hold_that_expires_reports_the_exec_processes_as_lost_at_init_s_time() {
    let mut events = with_exec();
    events.push(Event::Exited(
        init(),
        Exit {
            at_ns: 9,
            ..INIT_EXIT
        },
    ));
    events.extend([Event::OutputDrained(init()), Event::InitExitHoldExpired(LOST)]);
    let (_, actions) = story(events);
    let lost = Exit { at_ns: 9, ..LOST };
    assert!(
        actions.contains(&Action::ReportExit("a".into(), lost)),
        "{actions:?}"
    );
    assert!(actions.contains(&Action::ReportExit(
        init(),
        Exit {
            at_ns: 9,
            ..INIT_EXIT
        }
    )));
}

#[test]
fn an_exit_before_the_reply_to_start_is_reported_after_it() {
    let (mut state, actions) = story([
        Event::Created,
        Event::StartCalled(init()),
        Event::Exited(init(), INIT_EXIT),
    ]);
    assert_eq!(actions, [Action::CloseStdin(init()), Action::AwaitOutput(init())]);
    let mut late = state.clone();
    // Its output is written before the reply.
    assert_eq!(state.on(Event::OutputDrained(init())), Ok(vec![]));
    let (started, exited) = (
        Action::ReportStarted(init()),
        Action::ReportExit(init(), INIT_EXIT),
    );
    let actions = state.on(Event::Started(init())).unwrap();
    assert_eq!(actions[..2], [started.clone(), exited.clone()]);
    assert!(actions.contains(&Action::AllDrained), "{actions:?}");
    // The reply comes before its output is written.
    assert_eq!(late.on(Event::Started(init())), Ok(vec![started]));
    let actions = late.on(Event::OutputDrained(init())).unwrap();
    assert_eq!(actions[0], exited);
    assert!(actions.contains(&Action::AllDrained), "{actions:?}");
}

#[test]
fn init_is_reported_when_its_output_is_written() {
    let mut events = running();
    events.push(Event::Exited(init(), INIT_EXIT));
    let (mut state, actions) = story(events);
    assert_eq!(actions, [Action::CloseStdin(init()), Action::AwaitOutput(init())]);
    assert!(state.is_init_exit_held() && !state.awaits_execs() && !state.accepts_exec());
    assert_eq!(state.init().end(), None);
    // The VM's end is not a second exit.
    assert_eq!(state.on(Event::VmEnded(LOST)), Ok(vec![]));
    let want = [
        Action::ReportExit(init(), INIT_EXIT),
        Action::AnswerWaiters(init(), INIT_EXIT),
        Action::AllDrained,
    ];
    assert_eq!(state.on(Event::OutputDrained(init())).unwrap(), want);
    assert_eq!(state.init().end(), Some(INIT_EXIT));
}

/// A reader that does not read delays the exit, and keeps it from nobody.
#[test]
fn init_is_reported_when_its_output_stalls() {
    let mut events = with_exec();
    events.extend([Event::Exited(init(), INIT_EXIT), Event::InitOutputStalled]);
    let (mut state, actions) = story(events);
    assert_eq!(actions, [], "its exec process is reported first");
    let actions = state.on(Event::Exited("a".into(), EXEC_EXIT)).unwrap();
    assert!(
        actions.contains(&Action::ReportExit(init(), INIT_EXIT)),
        "{actions:?}"
    );
    let actions = state.on(Event::DeleteCalled(init())).unwrap();
    assert_eq!(actions, [Action::LimitOutput(init())]);
    let actions = state.on(Event::OutputDrained(init())).unwrap();
    assert!(actions.contains(&Action::RemoveContainer), "{actions:?}");
}

#[test]
fn delete_while_creating_cancels_the_creation() {
    let (mut state, actions) = story([Event::DeleteCalled(init())]);
    assert_eq!(actions, [Action::CancelCreate]);
    let mut late = state.clone();
    assert_eq!(state.on(Event::CreateFailed).unwrap(), [Action::RemoveContainer]);
    let actions = late.on(Event::Created).unwrap();
    assert!(actions.contains(&Action::RefuseCreate) && actions.contains(&Action::KillInit));
    assert!(
        late.on(Event::StartCalled(init())).is_err(),
        "a cancelled container can't be started"
    );
}

#[test]
fn an_exec_process_that_never_ran_is_not_reported() {
    let mut events = running();
    events.extend([Event::ExecAdded("a".into()), Event::StartCalled("a".into())]);
    events.push(Event::ExecFailed("a".into(), NEVER_RAN));
    let (mut state, actions) = story(events);
    let want = [
        Action::ReportStartFailed("a".into()),
        Action::AnswerWaiters("a".into(), NEVER_RAN),
        Action::AwaitOutput("a".into()),
    ];
    assert_eq!(actions, want);
    assert!(state.on(Event::StartCalled("a".into())).is_err());
}

#[test]
fn a_frozen_container_accepts_no_exec_process() {
    let mut events = running();
    events.extend([Event::PauseCalled, Event::FreezeDone]);
    let (mut state, actions) = story(events);
    assert_eq!(actions, [Action::ReportPaused]);
    assert_eq!(
        state.on(Event::ExecAdded("a".into())),
        Err(Rejected { state: "paused" })
    );
    assert_eq!(state.on(Event::PauseCalled), Err(Rejected { state: "paused" }));
    assert_eq!(state.on(Event::ResumeCalled).unwrap(), [Action::ThawInGuest]);
}

/// An init that takes longer to die than its output may take to be written.
#[test]
fn delete_of_a_created_container_waits_for_output_from_the_exit_on() {
    let (mut state, actions) = story([Event::Created, Event::DeleteCalled(init())]);
    assert_eq!(actions, [Action::KillInit]);
    assert!(state.on(Event::OutputDrained(init())).is_err());
    let actions = state.on(Event::Exited(init(), INIT_EXIT)).unwrap();
    assert!(actions.contains(&Action::LimitOutput(init())), "{actions:?}");
    let actions = state.on(Event::OutputDrained(init())).unwrap();
    assert!(actions.contains(&Action::RemoveContainer), "{actions:?}");
}

#[test]
fn output_is_awaited_before_delete_is_answered() {
    let mut events = running();
    events.extend([
        Event::Exited(init(), INIT_EXIT),
        Event::InitOutputStalled,
        Event::DeleteCalled(init()),
    ]);
    let (mut state, actions) = story(events);
    assert_eq!(actions, [Action::LimitOutput(init())]);
    assert!(state.on(Event::DeleteCalled(init())).is_err(), "a second Delete");
    let actions = state.on(Event::OutputDrained(init())).unwrap();
    assert_eq!(actions, [Action::AllDrained, Action::RemoveContainer]);
}
