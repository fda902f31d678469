//! Carries out what a container's state machine decides: each [`Action`] becomes a publication, an answer, a
//! call to the guest or a timer. Decides nothing itself.

use std::time::Duration;

use nacre_protocol::fault::{self, FaultPoint};

use super::queue::Event;
use super::{Sandbox, reach_when_sent};
use crate::container::{self, Action, Rejected, answer};
use crate::event::TaskEvent;
use crate::exit::Exit;
use crate::guest::CallError;
use crate::pod_spec::Lifetime;
use crate::process_id::{ProcessId, ProcessKey};
use crate::{clock, log};

/// How long init's exit waits for output that is read slowly: at most a megabyte of it is on its way.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long Delete waits for such output. containerd's CRI gives all that it does about an exit 10 s.
const DELETE_DEADLINE: Duration = Duration::from_secs(5);
/// How long init's exit and Delete wait while no byte of the output moves: longer than a reader on a busy host
/// pauses, shorter than a caller notices who does not read; containerd's own shims wait as long.
const STALL_DEADLINE: Duration = Duration::from_secs(2);
/// How long init's exit is held. The guest kills the exec processes that init leaves; one that has not exited
/// by then is reported as lost.
const HOLD_DEADLINE: Duration = Duration::from_secs(10);
/// The exit status of a process whose VM has ended: 128 + SIGKILL.
const LOST_STATUS: u32 = 137;

/// The exit of a process that is lost with its VM now.
pub(super) fn lost() -> Exit {
    Exit {
        status: LOST_STATUS,
        at_ns: clock::realtime_ns(),
        oom_kills: 0,
    }
}

impl Sandbox {
    /// Feeds `event` to the machine of the container that `key` belongs to, unless that process is gone. An
    /// event that is not possible is a defect, here or in the guest, and is logged.
    pub(super) fn advance(&mut self, key: &ProcessKey, event: container::Event) {
        if self.container_of_key(key).is_none() {
            return;
        }
        let text = format!("{event:?}");
        if let Err(rejected) = self.feed(&key.name.container, event) {
            log::error(format_args!(
                "{} is {}: unexpected {text}",
                key.name, rejected.state
            ));
        }
    }

    /// Feeds `event` to a container's machine and carries out its actions.
    pub(super) fn feed(&mut self, id: &str, event: container::Event) -> Result<(), Rejected> {
        let Some(container) = self.containers.get_mut(id) else {
            return Ok(());
        };
        for action in container.lifecycle.on(event)? {
            self.perform(id, action);
        }
        Ok(())
    }

    fn perform(&mut self, id: &str, action: Action) {
        match action {
            Action::ReportCreated => self.report_created(id),
            Action::RefuseCreate => self.refuse_create(id),
            Action::CancelCreate => self.cancel_create(id),
            Action::WatchExit(exec) => self.watch_exit(id, &exec),
            Action::StartInGuest(exec) => self.start_in_guest(id, &exec),
            Action::ReportStarted(exec) => self.report_started(id, &exec),
            Action::ReportStartFailed(exec) => self.report_start_failed(id, &exec),
            Action::CloseStdin(exec) => {
                if let Some(process) = self.find_process_mut(id, &exec) {
                    process.streams.end_stdin();
                }
            }
            Action::ReportExit(exec, exit) => self.report_exit(id, exec, exit),
            Action::AnswerWaiters(exec, exit) => {
                let process = self.find_process_mut(id, &exec);
                for reply in process.into_iter().flat_map(|process| process.waiters.drain(..)) {
                    answer(reply, Ok(exit));
                }
            }
            Action::AwaitOutput(exec) => self.await_output(id, &exec),
            Action::LimitOutput(exec) => self.limit_output(id, &exec),
            Action::HoldInitExit => {
                if let Some(container) = self.containers.get(id) {
                    let expired = Event::InitExitHoldExpired(container.init.key.clone());
                    self.queue.send_after(HOLD_DEADLINE, expired);
                }
            }
            Action::KillInit => self.kill_unstarted_init(id),
            Action::AllDrained => {
                // Nothing else can run in this VM, so it is ended now and is usually gone before Delete is
                // called. If the guest still has to write to disks, Delete ends it.
                let has_disks = self
                    .containers
                    .get(id)
                    .is_some_and(|container| container.has_disks);
                if id == self.identity.id && self.spec.lifetime == Lifetime::Container && !has_disks {
                    self.discard_vm();
                }
            }
            Action::RemoveExec(exec, exit) => self.remove_exec(id, &exec, exit),
            Action::RemoveContainer => self.remove_container(id),
            Action::FreezeInGuest => self.ask_freezer(id, true),
            Action::ThawInGuest => self.ask_freezer(id, false),
            Action::ReportPaused => self.events.publish(&TaskEvent::Paused { id }),
            Action::ReportResumed => self.events.publish(&TaskEvent::Resumed { id }),
        }
    }

    /// Waits for the output of a process that has exited and is being deleted, as long as it moves.
    fn limit_output(&mut self, id: &str, exec: &str) {
        let Some(process) = self.find_process_mut(id, exec) else {
            return;
        };
        let (key, mut outputs) = (process.key.clone(), process.streams.outputs());
        self.queue.send_result(async move {
            if !outputs
                .written_unless_stalled(STALL_DEADLINE, DELETE_DEADLINE)
                .await
            {
                log::warn(format_args!(
                    "{}: Delete no longer waits for its output: another process has it open, or \
                     nobody reads it",
                    key.name
                ));
            }
            Event::Drained(key)
        });
    }

    fn report_exit(&mut self, id: &str, exec: String, exit: Exit) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        if !container.is_published {
            return;
        }
        let name = ProcessId {
            container: id.to_owned(),
            exec,
        };
        // Probes run exec processes all the time.
        let level = if name.is_init() {
            log::Level::Info
        } else {
            log::Level::Debug
        };
        log::log_at(level, format_args!("{name} exited with {}", exit.status));
        self.events.publish(&TaskEvent::Exited {
            name: &name,
            pid: container.pid,
            exit,
        });
        reach_when_sent(FaultPoint::ExitReported);
    }

    fn await_output(&mut self, id: &str, exec: &str) {
        let Some(process) = self.find_process_mut(id, exec) else {
            return;
        };
        let mut outputs = process.streams.outputs();
        let (key, queue) = (process.key.clone(), self.queue.clone());
        tokio::spawn(async move {
            let is_init = key.name.is_init();
            if is_init
                && !outputs
                    .written_unless_stalled(STALL_DEADLINE, DRAIN_DEADLINE)
                    .await
            {
                queue.send(Event::InitOutputStalled(key.clone())).await;
            }
            outputs.written().await;
            queue.send(Event::Drained(key)).await;
        });
    }

    /// Waits in the guest for the exit of a process.
    fn watch_exit(&mut self, id: &str, exec: &str) {
        if self.is_pause(id) {
            return;
        }
        let Some(key) = self.find_process_mut(id, exec).map(|process| process.key.clone()) else {
            return;
        };
        let guest = self.guest();
        self.queue.send_result(async move {
            // Without a guest: the VM ended just now.
            let Ok(guest) = guest else {
                return Event::Exited(key, lost());
            };
            match guest.wait(&key.name).await {
                Ok(exit) => Event::Exited(key, exit),
                // Every task ends with its VM; if only the agent is lost, the VM is ended for that.
                Err(CallError::Lost(reason)) => Event::AgentLost(reason),
                Err(CallError::TimedOut) => {
                    Event::AgentLost("the agent's Wait call timed out unexpectedly".to_owned())
                }
                Err(CallError::Answer(code, message)) if key.name.is_init() => {
                    Event::AgentLost(format!("waiting for {}: {code:?}: {message}", key.name))
                }
                Err(CallError::Answer(code, message)) => {
                    log::error(format_args!("waiting for {}: {code:?}: {message}", key.name));
                    Event::Exited(key, lost())
                }
            }
        });
    }

    pub(super) fn exited(&mut self, key: &ProcessKey, exit: Exit) {
        if self.container_of_key(key).is_none() {
            return;
        }
        fault::reach(FaultPoint::ExitKnown);
        self.count_oom_kills(&key.name.container, exit.oom_kills);
        self.advance(key, container::Event::Exited(key.name.exec.clone(), exit));
    }

    pub(super) fn init_output_stalled(&mut self, init: &ProcessKey) {
        log::warn(format_args!(
            "{} has exited, and nobody reads the rest of its output",
            init.name
        ));
        self.advance(init, container::Event::InitOutputStalled);
    }

    pub(super) fn init_exit_hold_expired(&mut self, init: &ProcessKey) {
        let awaits_execs = |container: &mut container::Container| container.lifecycle.awaits_execs();
        if self.container_of_key(init).is_some_and(awaits_execs) {
            log::error(format_args!(
                "{}: exec processes have not exited {} s after init; they are reported as lost",
                init.name,
                HOLD_DEADLINE.as_secs()
            ));
            self.advance(init, container::Event::InitExitHoldExpired(lost()));
        }
    }
}
