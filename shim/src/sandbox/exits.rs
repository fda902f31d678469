//! The end of a container: its exit is told when the process dies, its Delete is answered when its output is written
//! (or has had its time), and with the sandbox's own container the VM ends.

use std::time::Duration;

use super::vm_events::LOST_STATUS;
use super::{Event, Progress, Sandbox};
use crate::clock;
use crate::container::{Deleted, Reply, answer};
use crate::error::Error;
use crate::guest::{CallError, Exit};
use crate::service::publisher::Notice;
use crate::task_state::{Input, TaskState};

/// How long Delete waits for output that nobody reads.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Learns of the end of `id`'s init from the guest.
    pub(super) fn wait_in_guest(&mut self, id: &str) {
        let guest = match self.guest() {
            Ok(guest) => guest,
            // The VM ended before its owner knew of the container.
            Err(_) => {
                return self.exited(
                    id,
                    Exit {
                        status: LOST_STATUS,
                        at_ns: clock::realtime_ns(),
                    },
                );
            }
        };
        let (id, queue) = (id.to_owned(), self.queue.clone());
        tokio::spawn(async move {
            let event = match guest.wait(&id).await {
                Ok(exit) => Event::Exited(id, exit),
                // A lost stream: with the VM's end every task ends, and an agent that is lost alone ends the VM.
                Err(CallError::Lost(reason)) => Event::AgentLost(reason),
                Err(CallError::Answer(code, message)) => {
                    Event::AgentLost(format!("waiting for {id}: {code:?}: {message}"))
                }
            };
            // The owner is gone only with the shim.
            let _ = queue.send(event).await;
        });
    }

    pub(super) fn exited(&mut self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if container.exit.is_some() || !container.advance(Input::Exited) {
            return;
        }
        container.exit = Some(exit);
        container.streams.end_stdin();
        if container.state == TaskState::Stopped {
            self.stopped(id);
        }
    }

    /// Tells of an end that is known; after Start has been answered, where it was called.
    pub(super) fn stopped(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(exit) = container.exit else { return };
        crate::log::info(format_args!("{id} exited with {}", exit.status));
        self.publisher.publish(&Notice::Exited {
            id,
            pid: container.pid,
            exit,
        });
        for reply in std::mem::take(&mut container.waiters) {
            answer(reply, Ok(exit));
        }
        let mut left = container.streams.outputs_left();
        let (id, queue) = (id.to_owned(), self.queue.clone());
        tokio::spawn(async move {
            // An error: the streams are gone, and the container with them.
            if left.wait_for(|left| *left == 0).await.is_ok() {
                // The owner is gone only with the shim.
                let _ = queue.send(Event::Drained(id)).await;
            }
        });
    }

    pub(super) fn drained(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.drained = true;
        // Nothing can come after the end of a VM's only container: ending it now is done by the time of Delete.
        if id == self.identity.id && !self.outline.is_pod {
            self.close_vm();
        }
        self.finish_delete(id);
    }

    pub(super) fn delete(&mut self, id: &str, reply: Reply<Deleted>) {
        let container = match self.find_mut(id) {
            Ok(container) => container,
            Err(error) => return answer(reply, Err(error)),
        };
        if !container.state.may_delete() || container.deleting.is_some() {
            let error = container.refuse("deleted");
            return answer(reply, Err(error));
        }
        container.deleting = Some(reply);
        if container.state == TaskState::Created {
            self.end_created(id);
        }
        let queue = self.queue.clone();
        let id_too = id.to_owned();
        let mut gone = self.progress.subscribe();
        tokio::spawn(async move {
            // Cut short by the end of the owner.
            let late = tokio::time::timeout(DRAIN_DEADLINE, gone.wait_for(|_| false))
                .await
                .is_err();
            if late {
                // The owner is gone only with the shim.
                let _ = queue.send(Event::Drained(id_too)).await;
            }
        });
        self.finish_delete(id);
    }

    /// An init that waits at its gate is killed; its exit comes as any other.
    fn end_created(&mut self, id: &str) {
        if id == self.identity.id {
            return self.close_vm();
        }
        let Progress::Ready(guest) = self.progress.borrow().clone() else {
            return;
        };
        let id = id.to_owned();
        tokio::spawn(async move {
            if let Err(error) = guest.kill(&id, libc::SIGKILL.unsigned_abs(), true).await {
                crate::log::warn(format_args!("killing {id}, which was never started: {error:?}"));
            }
        });
    }

    /// Answers Delete where all is there for it.
    fn finish_delete(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(exit) = container
            .exit
            .filter(|_| container.state == TaskState::Stopped && container.drained)
        else {
            return;
        };
        let Some(reply) = container.deleting.take() else {
            return;
        };
        let deleted = Deleted {
            pid: container.pid,
            exit,
        };
        self.containers.remove(id);
        self.publisher.publish(&Notice::Deleted {
            id,
            pid: deleted.pid,
            exit,
        });
        if id == self.identity.id {
            self.close_vm();
            return answer(reply, Ok(deleted));
        }
        self.delete_in_guest(id, deleted, reply);
    }

    fn delete_in_guest(&self, id: &str, deleted: Deleted, reply: Reply<Deleted>) {
        let Progress::Ready(guest) = self.progress.borrow().clone() else {
            return answer(reply, Ok(deleted));
        };
        let id = id.to_owned();
        tokio::spawn(async move {
            let result: Result<(), Error> = match guest.delete(&id).await {
                // Lost with the VM: there is nothing left to be deleted.
                Ok(()) | Err(CallError::Lost(_)) => Ok(()),
                Err(error @ CallError::Answer(..)) => Err(error.into_error("delete container")),
            };
            answer(reply, result.map(|()| deleted));
        });
    }
}
