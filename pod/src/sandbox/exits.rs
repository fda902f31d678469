//! The end of a process: its exit is told when it dies, its Delete is answered when its output is written (or has had
//! its time), and with the sandbox's own container the VM ends. Init's exit is the last of its container: where it comes
//! earlier it is held until those of the processes beside it are told.

use std::time::Duration;

use super::vm_events::lost;
use super::{Event, Progress, Sandbox};
use crate::container::Container;
use crate::container::{Deleted, Reply, answer};
use crate::container::{Input, TaskState};
use crate::error::Error;
use crate::event::TaskEvent;
use crate::exit::Exit;
use crate::guest::{CallError, Guest};
use crate::hooks::Point;
use crate::process_id::{ProcessId, ProcessKey};

/// How long Delete waits for output that nobody reads.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long init's exit is held. The guest kills what init leaves, so what has not ended by then is lost.
const HOLD_DEADLINE: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Learns of a process's end from the guest.
    pub(super) fn wait_in_guest(&mut self, tag: &ProcessKey) {
        let guest = match self.guest() {
            Ok(guest) => guest,
            // The VM ended before its owner knew of the process.
            Err(_) => return self.exited(tag, lost()),
        };
        let (tag, queue) = (tag.clone(), self.queue.clone());
        tokio::spawn(async move {
            let event = match guest.wait(&tag.name).await {
                Ok(exit) => Event::Exited(tag, exit),
                // A lost stream: with the VM's end every task ends, and an agent that is lost alone ends the VM.
                Err(CallError::Lost(reason)) => Event::AgentLost(reason),
                Err(CallError::Answer(code, message)) if tag.name.is_init() => {
                    Event::AgentLost(format!("waiting for {}: {code:?}: {message}", tag.name))
                }
                Err(CallError::Answer(code, message)) => {
                    crate::log::error(format_args!("waiting for {}: {code:?}: {message}", tag.name));
                    Event::Exited(tag, lost())
                }
            };
            // The owner is gone only with the shim.
            let _ = queue.send(event).await;
        });
    }

    pub(super) fn exited(&mut self, tag: &ProcessKey, exit: Exit) {
        if self.container_of_key(tag).is_none() {
            return;
        }
        self.count_kills(&tag.name.container, exit.oom_kills);
        if let Some(container) = self.container_of_key(tag)
            && tag.name.is_init()
            && container.init.exit.is_none()
            && container.has_live_execs()
        {
            // The first is how it ended; the VM's end may come after it.
            if container.held.is_none() {
                container.held = Some(exit);
                self.after(HOLD_DEADLINE, Event::InitExitHoldExpired(tag.clone()));
            }
            return;
        }
        self.end(tag, exit);
    }

    /// An end that may be told.
    fn end(&mut self, tag: &ProcessKey, exit: Exit) {
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let Some(process) = container.process_mut(&tag.name.exec) else {
            return;
        };
        if process.exit.is_some() || !process.advance(Input::Exited) {
            return;
        }
        process.exit = Some(exit);
        process.streams.end_stdin();
        if process.state == TaskState::Stopped {
            self.stopped(tag);
        }
    }

    /// Tells of an end that is known; after Start has been answered, where it was called.
    pub(super) fn stopped(&mut self, tag: &ProcessKey) {
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let pid = container.pid;
        let Some(exit) = container.process(&tag.name.exec).and_then(|process| process.exit) else {
            return;
        };
        crate::log::info(format_args!("{} exited with {}", tag.name, exit.status));
        self.events.publish(&TaskEvent::Exited {
            name: &tag.name,
            pid,
            exit,
        });
        self.settle(tag);
    }

    /// What follows from an end that was told, or that there is nothing to be told of.
    pub(super) fn settle(&mut self, tag: &ProcessKey) {
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let Some(process) = container.process_mut(&tag.name.exec) else {
            return;
        };
        if let Some(exit) = process.end() {
            for reply in std::mem::take(&mut process.waiters) {
                answer(reply, Ok(exit));
            }
        }
        let mut left = process.streams.outputs_left();
        let held = container.held.filter(|_| !container.has_live_execs());
        let init = container.init.tag.clone();
        let (tag, queue) = (tag.clone(), self.queue.clone());
        tokio::spawn(async move {
            // An error: the streams are gone, and the process with them.
            if left.wait_for(|left| *left == 0).await.is_ok() {
                // The owner is gone only with the shim.
                let _ = queue.send(Event::Drained(tag)).await;
            }
        });
        if let Some(exit) = held {
            self.release(&init, exit);
        }
    }

    fn release(&mut self, init: &ProcessKey, exit: Exit) {
        if let Some(container) = self.container_of_key(init) {
            container.held = None;
        }
        self.end(init, exit);
    }

    pub(super) fn init_exit_hold_expired(&mut self, init: &ProcessKey) {
        let Some(container) = self.container_of_key(init) else {
            return;
        };
        let Some(exit) = container.held else { return };
        crate::log::error(format_args!(
            "{}: processes beside init have not ended {} s after it",
            init.name,
            HOLD_DEADLINE.as_secs()
        ));
        for exec in live_execs(container) {
            self.end(
                &exec,
                Exit {
                    at_ns: exit.at_ns,
                    ..lost()
                },
            );
        }
        // One whose start the guest has not answered is told of when it does; init waits no longer.
        if self
            .container_of_key(init)
            .is_some_and(|container| container.held.is_some())
        {
            self.release(init, exit);
        }
    }

    /// The VM has ended: so has everything in it.
    pub(super) fn all_exited(&mut self) {
        let mut ended = Vec::new();
        for container in self.containers.values() {
            ended.extend(live_execs(container));
            if container.init.state.may_exit() {
                ended.push(container.init.tag.clone());
            }
        }
        let exit = lost();
        for tag in ended {
            self.exited(&tag, exit);
        }
    }

    pub(super) fn drained(&mut self, tag: &ProcessKey) {
        let is_pod = self.vm_hints.is_pod;
        let is_sandbox = tag.name.container == self.identity.id;
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        if let Some(process) = container.process_mut(&tag.name.exec) {
            process.drained = true;
        }
        // Nothing can come after the end of a VM's only container: ending it now is done by the time of Delete.
        if is_sandbox && !is_pod && container.is_drained() {
            self.discard_vm();
        }
        self.finish_delete(&tag.name);
    }

    pub(super) fn delete(&mut self, name: &ProcessId, reply: Reply<Deleted>) {
        let process = match self.process_mut(name) {
            Ok(process) => process,
            Err(error) => return answer(reply, Err(error)),
        };
        if !process.state.may_delete() || process.deleting.is_some() {
            let error = process.refuse("deleted");
            return answer(reply, Err(error));
        }
        process.deleting = Some(reply);
        let tag = process.tag.clone();
        match (process.state, name.is_init()) {
            (TaskState::Created, true) => self.end_created(name),
            // The guest does not know of it.
            (TaskState::Created, false) => return self.remove_exec(name),
            _ => {}
        }
        self.finish_delete(name);
        if self.container_of_key(&tag).is_some() {
            self.after(DRAIN_DEADLINE, Event::Drained(tag));
        }
    }

    /// Queues `event` after `time`, unless the owner has ended by then.
    fn after(&self, time: Duration, event: Event) {
        let queue = self.queue.clone();
        let mut gone = self.progress.subscribe();
        tokio::spawn(async move {
            let is_due = tokio::time::timeout(time, gone.wait_for(|_| false))
                .await
                .is_err();
            if is_due {
                // The owner is gone only with the shim.
                let _ = queue.send(event).await;
            }
        });
    }

    /// An init that waits at its gate is killed; its exit comes as any other.
    fn end_created(&mut self, name: &ProcessId) {
        if name.container == self.identity.id {
            return self.discard_vm();
        }
        let Progress::Ready(guest) = self.progress.borrow().clone() else {
            return;
        };
        let name = name.clone();
        tokio::spawn(async move {
            if let Err(error) = guest.kill(&name, libc::SIGKILL.unsigned_abs(), true).await {
                crate::log::warn(format_args!("killing {name}, which was never started: {error:?}"));
            }
        });
    }

    /// Answers Delete where all is there for it.
    fn finish_delete(&mut self, name: &ProcessId) {
        let Ok(process) = self.process_mut(name) else {
            return;
        };
        if process.end().is_none() || !process.drained || process.deleting.is_none() {
            return;
        }
        if name.is_init() {
            self.remove_container(name);
        } else {
            self.remove_exec(name);
        }
    }

    /// containerd hears of no deletion but of containers'.
    fn remove_exec(&mut self, name: &ProcessId) {
        let Ok(container) = self.container_mut(&name.container) else {
            return;
        };
        let pid = container.pid;
        if let Some(exec) = container.execs.remove(&name.exec) {
            self.discard_ports(&exec.process.streams);
            exec.process.abandon(pid);
        }
    }

    fn remove_container(&mut self, name: &ProcessId) {
        let Some(mut container) = self.containers.remove(&name.container) else {
            return;
        };
        let pid = container.pid;
        let id = container.id().to_owned();
        self.discard_ports(&container.init.streams);
        for (_, exec) in std::mem::take(&mut container.execs) {
            self.discard_ports(&exec.process.streams);
            exec.process.abandon(pid);
        }
        let (Some(exit), Some(reply)) = (container.init.exit, container.init.deleting.take()) else {
            return;
        };
        self.events.publish(&TaskEvent::Deleted { id: &id, pid, exit });
        let deleted = container.init.deleted(pid);
        let guest = if id == self.identity.id {
            self.discard_vm();
            None
        } else {
            match &*self.progress.borrow() {
                Progress::Ready(guest) => Some(guest.clone()),
                Progress::Starting | Progress::Running | Progress::Ended(_) => None,
            }
        };
        let hooks = container.hooks;
        if guest.is_none() && !hooks.has(Point::Poststop) {
            return answer(reply, Ok(deleted));
        }
        tokio::spawn(async move {
            let result = delete_in_guest(guest, &id).await;
            hooks.run_all(Point::Poststop, pid).await;
            answer(reply, result.map(|()| deleted));
        });
    }
}

async fn delete_in_guest(guest: Option<Guest>, id: &str) -> Result<(), Error> {
    let Some(guest) = guest else { return Ok(()) };
    match guest.delete(id).await {
        // Lost with the VM: there is nothing left to be deleted.
        Ok(()) | Err(CallError::Lost(_)) => Ok(()),
        Err(error @ CallError::Answer(..)) => Err(error.into_error("delete container")),
    }
}

fn live_execs(container: &Container) -> Vec<ProcessKey> {
    let processes = container.execs.values().map(|exec| &exec.process);
    processes
        .filter(|process| process.state.is_live() && process.state.may_exit())
        .map(|process| process.tag.clone())
        .collect()
}
