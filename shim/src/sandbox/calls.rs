//! Calls of containerd's, answered from what the owner knows or by a task that asks the guest.

use std::future::Future;

use super::{Call, Event, Progress, Sandbox, View};
use crate::clock;
use crate::container::{Container, Reply, answer};
use crate::error::Error;
use crate::guest::{CallError, Exit, Guest};
use crate::service::publisher::Notice;
use crate::task_state::{Input, TaskState};

impl Sandbox {
    pub(super) fn call(&mut self, call: Call) {
        // A call means that containerd is there: what it missed goes out now.
        self.publisher.wake();
        match call {
            Call::Create(request, reply) => self.create(request, reply),
            Call::Start(id, reply) => self.start(&id, reply),
            Call::State(id, reply) => answer(reply, self.find(&id).map(view)),
            Call::Wait(id, reply) => self.wait(&id, reply),
            Call::Kill {
                id,
                signal,
                all,
                reply,
            } => self.kill(&id, signal, all, reply),
            Call::Delete(id, reply) => self.delete(&id, reply),
            Call::CloseStdin(id, reply) => {
                answer(
                    reply,
                    self.find_mut(&id)
                        .map(|container| container.streams.close_stdin()),
                );
            }
            Call::Pids(id, reply) => self.pids(&id, reply),
            Call::Shutdown { now, reply } => self.shut_down(now, reply),
        }
    }

    fn find(&self, id: &str) -> Result<&Container, Error> {
        self.containers
            .get(id)
            .ok_or_else(|| Error::NoTask(id.to_owned()))
    }

    pub(super) fn find_mut(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Error::NoTask(id.to_owned()))
    }

    pub(super) fn guest(&self) -> Result<Guest, Error> {
        match &*self.progress.borrow() {
            Progress::Ready(guest) => Ok(guest.clone()),
            Progress::Ended(reason) => Err(Error::Step(Box::new((**reason).clone()))),
            Progress::Starting | Progress::Running => Err(Error::Closing),
        }
    }

    fn start(&mut self, id: &str, reply: Reply<u32>) {
        let begun = self.guest().and_then(|guest| {
            let container = self.find_mut(id)?;
            if container.state != TaskState::Created {
                return Err(container.refuse("started"));
            }
            container.advance(Input::Start);
            Ok(guest)
        });
        let guest = match begun {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        if let Some(container) = self.containers.get_mut(id) {
            container.starting = Some(reply);
        }
        let (id, queue) = (id.to_owned(), self.queue.clone());
        tokio::spawn(async move {
            let result = guest
                .start(&id)
                .await
                .map_err(|error| error.into_error("start container"));
            // The owner is gone only with the shim.
            let _ = queue.send(Event::Started(id, result)).await;
        });
    }

    pub(super) fn started(&mut self, id: &str, result: Result<(), Error>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let reply = container.starting.take();
        let ended = container.state == TaskState::Exiting;
        let pid = container.pid;
        match &result {
            Ok(()) => {
                container.advance(Input::Started);
                self.publisher.publish(&Notice::Started { id, pid });
                self.recorder.step("container started", clock::monotonic_ns());
                self.recorder.write();
            }
            Err(error) => {
                container.advance(Input::StartFailed);
                crate::log::error(format_args!("start {id}: {error}"));
            }
        }
        if let Some(reply) = reply {
            answer(reply, result.map(|()| pid));
        }
        if ended {
            self.stopped(id);
        }
    }

    fn wait(&mut self, id: &str, reply: Reply<Exit>) {
        match self.find_mut(id) {
            Ok(container) => match container.exit.filter(|_| container.state == TaskState::Stopped) {
                Some(exit) => answer(reply, Ok(exit)),
                None => container.waiters.push(reply),
            },
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn kill(&self, id: &str, signal: u32, all: bool, reply: Reply<()>) {
        let begun = self.find(id).and_then(|container| match container.state {
            TaskState::Stopped | TaskState::Exiting => Err(Error::Finished(id.to_owned())),
            TaskState::Created | TaskState::Starting | TaskState::Running => self.guest(),
            TaskState::Creating => Err(container.refuse("killed")),
        });
        let id = id.to_owned();
        match begun {
            Ok(guest) => ask(reply, "kill", async move { guest.kill(&id, signal, all).await }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn pids(&self, id: &str, reply: Reply<Vec<u32>>) {
        let begun = self.find(id).and_then(|container| {
            if container.state == TaskState::Stopped {
                Ok(None)
            } else {
                self.guest().map(Some)
            }
        });
        let id = id.to_owned();
        match begun {
            Ok(Some(guest)) => ask(reply, "list processes", async move { guest.pids(&id).await }),
            Ok(None) => answer(reply, Ok(Vec::new())),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn shut_down(&mut self, now: bool, reply: Reply<()>) {
        if !self.containers.is_empty() && !now {
            return answer(reply, Ok(()));
        }
        self.close_vm();
        if let Some(earlier) = self.shutdown.replace(reply) {
            answer(earlier, Ok(()));
        }
    }
}

fn view(container: &Container) -> View {
    View {
        bundle: container.request.bundle.display().to_string(),
        pid: container.pid,
        state: container.state,
        paths: container.request.paths.clone(),
        exit: container.exit,
    }
}

/// Answers with what the guest says, outside the owner.
fn ask<T: Send + 'static>(
    reply: Reply<T>,
    step: &'static str,
    question: impl Future<Output = Result<T, CallError>> + Send + 'static,
) {
    tokio::spawn(async move { answer(reply, question.await.map_err(|error| error.into_error(step))) });
}
