//! Dispatches calls, and answers those that change no state: from what the sandbox knows, or by a task that
//! asks the guest.

use nacre_protocol::fault::{self, FaultPoint};

use super::unused::NEXT_CALL;
use super::{Call, Listed, Progress, Sandbox, View};
use crate::container::{Container, Freeze, Process, Reply, TaskState, answer};
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
            Call::Pids(id, reply) => answer(reply, self.pids(&id)),
            Call::Pause(id, reply) => self.pause(&id, reply),
            Call::Resume(id, reply) => self.resume(&id, reply),
            Call::Update(id, resources, reply) => self.update(&id, &resources, reply),
            Call::Stats(id, reply) => self.stats(&id, reply),
            Call::Pod(call) => self.pod_call(call),
            Call::CallerExited => self.limit_unused(NEXT_CALL),
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

    pub(super) fn find(&self, name: &ProcessId) -> Result<(&Container, &Process), Error> {
        let container = self.container(&name.container)?;
        let process = container
            .process(&name.exec)
            .ok_or_else(|| Error::NoProcess(name.clone()))?;
        Ok((container, process))
    }

    pub(super) fn find_process_mut(&mut self, id: &str, exec: &str) -> Option<&mut Process> {
        self.containers.get_mut(id)?.process_mut(exec)
    }

    /// The container of the process that an event is about; None if that process was removed.
    pub(super) fn container_of_key(&mut self, key: &ProcessKey) -> Option<&mut Container> {
        let container = self.containers.get_mut(&key.name.container)?;
        let is_same = container.process(&key.name.exec)?.key == *key;
        is_same.then_some(container)
    }

    pub(super) fn guest(&self) -> Result<Guest, Error> {
        match &*self.progress.borrow() {
            Progress::Ready(guest) => Ok(guest.clone()),
            Progress::Ended(reason) => Err(Error::Step(Box::new((**reason).clone()))),
            Progress::Starting | Progress::Running => Err(Error::Closing),
        }
    }

    /// The state of a process that [`Sandbox::find`] found.
    pub(super) fn state_of(container: &Container, name: &ProcessId) -> TaskState {
        let process = container.lifecycle.process(&name.exec);
        process.map_or(TaskState::Stopped, |process| process.state)
    }

    fn state(&self, name: &ProcessId) -> Result<View, Error> {
        let (container, process) = self.find(name)?;
        let state = Self::state_of(container, name);
        let runs = state == TaskState::Running;
        Ok(View {
            bundle: container.request.bundle.display().to_string(),
            pid: process.pid(container.pid),
            state,
            freeze: if runs {
                container.lifecycle.freeze()
            } else {
                Freeze::Thawed
            },
            paths: process.paths.clone(),
            exit: container
                .lifecycle
                .process(&name.exec)
                .and_then(|process| process.exit()),
        })
    }

    fn wait(&mut self, name: &ProcessId, reply: Reply<Exit>) {
        let end = self.find(name).map(|(container, _)| {
            let process = container.lifecycle.process(&name.exec);
            process.and_then(|process| process.end())
        });
        match (end, self.process_mut(name)) {
            (Ok(Some(exit)), _) => answer(reply, Ok(exit)),
            (Ok(None), Ok(process)) => {
                // Callers that have left, with a containerd that was restarted, wait no more.
                process.waiters.retain(|waiter| !waiter.is_closed());
                process.waiters.push(reply);
            }
            (Err(error), _) | (Ok(None), Err(error)) => answer(reply, Err(error)),
        }
    }

    /// Any size is accepted for a process without a terminal, as by containerd's own shims.
    fn resize(&mut self, name: ProcessId, size: TerminalSize, reply: Reply<()>) {
        let begun = self.find(&name).and_then(|(container, process)| {
            if !process.paths.terminal {
                return Ok(None);
            }
            match Self::state_of(container, &name) {
                TaskState::Created | TaskState::Starting if !name.is_init() => Ok(None),
                TaskState::Created | TaskState::Starting | TaskState::Running => self.guest().map(Some),
                TaskState::Creating | TaskState::Exiting | TaskState::Stopped => {
                    Err(self.refuse_process(&name, "resized"))
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

    /// The processes that the caller started and that run, init first. Each has the pid that State and events
    /// have, the VMM's, since callers look it up on the host: `docker top` runs ps there. The guest's pids
    /// would be those of other processes, and a guest that does not answer would delay a containerd that
    /// restarts.
    fn pids(&self, id: &str) -> Result<Vec<Listed>, Error> {
        let container = self.container(id)?;
        // containerd asks a shim that it finds after a restart: without processes it cleans up.
        let state = container.lifecycle.init().state;
        if matches!(state, TaskState::Stopped | TaskState::Creating) {
            return Ok(Vec::new());
        }
        let listed = |exec: Option<&String>| Listed {
            pid: container.pid,
            exec: exec.cloned(),
        };
        let runs = |exec: &&String| {
            let process = container.lifecycle.process(exec);
            process.is_some_and(|process| process.state == TaskState::Running)
        };
        let execs = container.execs.keys().filter(runs).map(|exec| listed(Some(exec)));
        Ok([listed(None)].into_iter().chain(execs).collect())
    }

    fn stats(&self, id: &str, reply: Reply<CgroupFiles>) {
        if self.is_pod_without_pause(id) {
            return self.pod_stats(reply);
        }
        let begun = self
            .container(id)
            .and_then(|container| match container.lifecycle.init().state {
                TaskState::Created | TaskState::Starting | TaskState::Running => self.guest(),
                TaskState::Creating => Err(container.refuse("measured")),
                TaskState::Exiting | TaskState::Stopped => Err(Error::NoCounters(ProcessId::init(id))),
            });
        if begun.is_ok() && self.is_pause(id) {
            return self.pod_stats(reply);
        }
        let id = id.to_owned();
        match begun {
            Ok(guest) => ask(reply, "read counters", async move { guest.stats(&id).await }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn shut_down(&mut self, now: bool, reply: Reply<()>) {
        fault::reach(FaultPoint::ShutdownCalled);
        if !now && (!self.containers.is_empty() || self.outlives_containers()) {
            return answer(reply, Ok(()));
        }
        self.discard_vm();
        if let Some(earlier) = self.shutdown.replace(reply) {
            answer(earlier, Ok(()));
        }
    }
}

/// Answers with the guest's answer, in a task of its own. `step` names the call in an error.
pub(super) fn ask<T: Send + 'static>(
    reply: Reply<T>,
    step: &'static str,
    question: impl Future<Output = Result<T, CallError>> + Send + 'static,
) {
    tokio::spawn(async move { answer(reply, question.await.map_err(|error| error.into_error(step))) });
}
