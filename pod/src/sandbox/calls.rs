//! Calls of containerd's, answered from what the owner knows or by a task that asks the guest.

use std::collections::BTreeMap;
use std::future::Future;

use super::{Call, Listed, Progress, Sandbox, View, log_ignored_fields};
use crate::bundle;
use crate::container::Container;
use crate::container::{Freeze, TaskState};
use crate::container::{Process, Reply, answer};
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::{CallError, CgroupFiles, Guest};
use crate::process_id::{ProcessId, ProcessKey};
use crate::streams::TerminalSize;

impl Sandbox {
    pub(super) fn call(&mut self, call: Call) {
        match call {
            Call::Create(request, reply) => self.create(request, reply),
            Call::Exec(request, reply) => self.exec(request, reply),
            Call::Start(name, reply) => self.start(&name, reply),
            Call::State(name, reply) => answer(reply, self.state(&name)),
            Call::Wait(name, reply) => self.wait(&name, reply),
            Call::Kill {
                name,
                signal,
                all,
                reply,
            } => self.kill(name, signal, all, reply),
            Call::Delete(name, reply) => self.delete(&name, reply),
            Call::CloseStdin(name, reply) => {
                answer(
                    reply,
                    self.process_mut(&name)
                        .map(|process| process.streams.close_stdin()),
                );
            }
            Call::Resize(name, size, reply) => self.resize(name, size, reply),
            Call::Pids(id, reply) => self.pids(&id, reply),
            Call::Pause(id, reply) => self.pause(&id, reply),
            Call::Resume(id, reply) => self.resume(&id, reply),
            Call::Update(id, resources, reply) => self.update(&id, &resources, reply),
            Call::Stats(id, reply) => self.stats(&id, reply),
            Call::Shutdown { now, reply } => self.shut_down(now, reply),
        }
    }

    pub(super) fn container(&self, id: &str) -> Result<&Container, Error> {
        self.containers
            .get(id)
            .ok_or_else(|| Error::NoTask(id.to_owned()))
    }

    pub(super) fn container_mut(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Error::NoTask(id.to_owned()))
    }

    pub(super) fn process_mut(&mut self, name: &ProcessId) -> Result<&mut Process, Error> {
        self.container_mut(&name.container)?
            .process_mut(&name.exec)
            .ok_or_else(|| Error::NoProcess(name.clone()))
    }

    fn find(&self, name: &ProcessId) -> Result<(&Container, &Process), Error> {
        let container = self.container(&name.container)?;
        let process = container
            .process(&name.exec)
            .ok_or_else(|| Error::NoProcess(name.clone()))?;
        Ok((container, process))
    }

    /// The container of the process that an event is about; None where that process is gone.
    pub(super) fn container_of_key(&mut self, tag: &ProcessKey) -> Option<&mut Container> {
        let container = self.containers.get_mut(&tag.name.container)?;
        let is_it = container.process(&tag.name.exec)?.tag == *tag;
        is_it.then_some(container)
    }

    pub(super) fn guest(&self) -> Result<Guest, Error> {
        match &*self.progress.borrow() {
            Progress::Ready(guest) => Ok(guest.clone()),
            Progress::Ended(reason) => Err(Error::Step(Box::new((**reason).clone()))),
            Progress::Starting | Progress::Running => Err(Error::Closing),
        }
    }

    fn state(&self, name: &ProcessId) -> Result<View, Error> {
        let (container, process) = self.find(name)?;
        let runs = process.state == TaskState::Running;
        Ok(View {
            bundle: container.request.bundle.display().to_string(),
            pid: process.pid(container.pid),
            state: process.state,
            freeze: if runs { container.freeze } else { Freeze::Thawed },
            paths: process.paths.clone(),
            exit: process.exit,
        })
    }

    fn wait(&mut self, name: &ProcessId, reply: Reply<Exit>) {
        match self.process_mut(name) {
            Ok(process) => match process.end() {
                Some(exit) => answer(reply, Ok(exit)),
                None => {
                    // Those who have gone, with a containerd that was restarted, wait no more.
                    process.waiters.retain(|waiter| !waiter.is_closed());
                    process.waiters.push(reply);
                }
            },
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn kill(&self, name: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        let begun = self.find(&name).and_then(|(container, process)| {
            let init_ended = name.is_init() && container.held.is_some();
            match process.state {
                TaskState::Stopped | TaskState::Exiting => Err(Error::Finished(name.clone())),
                _ if init_ended => Err(Error::Finished(name.clone())),
                TaskState::Running => self.guest(),
                TaskState::Created | TaskState::Starting if name.is_init() => self.guest(),
                TaskState::Creating | TaskState::Created | TaskState::Starting => {
                    Err(process.refuse("killed"))
                }
            }
        });
        // "All" is the container's init and whatever it left; a process beside it is one.
        let all = all && name.is_init();
        match begun {
            Ok(guest) => ask(reply, "kill", async move { guest.kill(&name, signal, all).await }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// A process without a terminal takes any size, as under containerd's own shims.
    fn resize(&mut self, name: ProcessId, size: TerminalSize, reply: Reply<()>) {
        let begun = self.find(&name).and_then(|(_, process)| {
            if !process.paths.terminal {
                return Ok(None);
            }
            match process.state {
                TaskState::Created | TaskState::Starting if !name.is_init() => Ok(None),
                TaskState::Created | TaskState::Starting | TaskState::Running => self.guest().map(Some),
                TaskState::Creating | TaskState::Exiting | TaskState::Stopped => {
                    Err(process.refuse("resized"))
                }
            }
        });
        match begun {
            Ok(Some(guest)) => ask(reply, "resize terminal", async move {
                guest.resize(&name, size).await
            }),
            Ok(None) => {
                if let Some(exec) = self
                    .containers
                    .get_mut(&name.container)
                    .and_then(|container| container.execs.get_mut(&name.exec))
                {
                    exec.size = Some(size);
                }
                answer(reply, Ok(()));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn pids(&self, id: &str, reply: Reply<Vec<Listed>>) {
        let begun = self.container(id).and_then(|container| {
            if container.init.state == TaskState::Stopped {
                return Ok(None);
            }
            let mut execs = BTreeMap::new();
            for (exec, known) in &container.execs {
                if let Some(pid) = known.process.guest_pid.filter(|_| known.process.exit.is_none()) {
                    execs.insert(pid, exec.clone());
                }
            }
            Ok(Some((self.guest()?, execs)))
        });
        let id = id.to_owned();
        match begun {
            Ok(Some((guest, mut execs))) => ask(reply, "list processes", async move {
                let pids = guest.pids(&id).await?;
                let listed = |pid| Listed {
                    pid,
                    exec: execs.remove(&pid),
                };
                Ok(pids.into_iter().map(listed).collect())
            }),
            Ok(None) => answer(reply, Ok(Vec::new())),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn update(&self, id: &str, resources: &[u8], reply: Reply<()>) {
        let begun = self
            .container(id)
            .and_then(|container| match container.init.state {
                TaskState::Created | TaskState::Starting | TaskState::Running => {
                    let checked = bundle::update(resources);
                    let (resources, ignored) = checked.map_err(|error| Error::Refused(error.to_string()))?;
                    log_ignored_fields(&ProcessId::init(id), &ignored);
                    Ok((self.guest()?, resources))
                }
                TaskState::Creating | TaskState::Exiting | TaskState::Stopped => {
                    Err(container.refuse("updated"))
                }
            });
        let id = id.to_owned();
        match begun {
            Ok((guest, resources)) => ask(reply, "update limits", async move {
                guest.update(&id, resources).await
            }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn stats(&self, id: &str, reply: Reply<CgroupFiles>) {
        let begun = self
            .container(id)
            .and_then(|container| match container.init.state {
                TaskState::Created | TaskState::Starting | TaskState::Running => self.guest(),
                TaskState::Creating => Err(container.refuse("measured")),
                TaskState::Exiting | TaskState::Stopped => Err(Error::NoCounters(ProcessId::init(id))),
            });
        let id = id.to_owned();
        match begun {
            Ok(guest) => ask(reply, "read counters", async move { guest.stats(&id).await }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn shut_down(&mut self, now: bool, reply: Reply<()>) {
        if !self.containers.is_empty() && !now {
            return answer(reply, Ok(()));
        }
        self.discard_vm();
        if let Some(earlier) = self.shutdown.replace(reply) {
            answer(earlier, Ok(()));
        }
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
