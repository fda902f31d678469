//! Start: of an init, whose gate is opened, and of a process beside it, which is made then.

use super::{Event, Sandbox, exec};
use crate::clock;
use crate::container::{Input, TaskState};
use crate::container::{Reply, answer};
use crate::error::Error;
use crate::event::TaskEvent;
use crate::exit::Exit;
use crate::guest::CallError;
use crate::hooks::Point;
use crate::process_id::{ProcessId, ProcessKey};

/// The status of a process whose command was never run: what containerd calls unknown.
const NEVER_RAN_STATUS: u32 = 255;

impl Sandbox {
    pub(super) fn start(&mut self, name: &ProcessId, reply: Reply<u32>) {
        let begun = if name.is_init() {
            self.start_init(name)
        } else {
            self.start_exec(name)
        };
        match (begun, self.process_mut(name)) {
            (Ok(()), Ok(process)) => process.starting = Some(reply),
            (Err(error), _) | (Ok(()), Err(error)) => answer(reply, Err(error)),
        }
    }

    fn start_init(&mut self, name: &ProcessId) -> Result<(), Error> {
        let guest = self.guest();
        let container = self.container_mut(&name.container)?;
        if container.init.state != TaskState::Created {
            return Err(container.refuse("started"));
        }
        let guest = guest?;
        container.init.advance(Input::Start);
        let (tag, pid) = (container.init.tag.clone(), container.pid);
        let poststart = container.hooks.has(Point::Poststart);
        let hooks = poststart.then(|| container.hooks.clone());
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let result = guest.start(&tag.name.container).await;
            if let (Ok(()), Some(hooks)) = (&result, hooks) {
                hooks.run_all(Point::Poststart, pid).await;
            }
            let result = result
                .map(|()| None)
                .map_err(|error| error.into_error("start container"));
            // The owner is gone only with the shim.
            let _ = queue.send(Event::Started(tag, result)).await;
        });
        Ok(())
    }

    fn start_exec(&mut self, name: &ProcessId) -> Result<(), Error> {
        let guest = self.guest();
        let container = self.container_mut(&name.container)?;
        let may_run = container.accepts_exec();
        let refusal = container.refuse("given a process");
        let exec = container
            .execs
            .get_mut(&name.exec)
            .ok_or_else(|| Error::NoProcess(name.clone()))?;
        if exec.process.state != TaskState::Created {
            return Err(exec.process.refuse("started"));
        }
        if !may_run {
            return Err(refusal);
        }
        let guest = guest?;
        exec.process.advance(Input::Start);
        let spec = exec::for_guest(exec);
        let stdio = std::mem::take(&mut exec.stdio);
        let tag = exec.process.tag.clone();
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let result = guest
                .start_exec(&tag.name, spec, stdio)
                .await
                .map(Some)
                .map_err(|error| error.into_error("start process"));
            // The owner is gone only with the shim.
            let _ = queue.send(Event::Started(tag, result)).await;
        });
        Ok(())
    }

    pub(super) fn started(&mut self, tag: &ProcessKey, result: Result<Option<u32>, Error>) {
        match (result, tag.name.is_init()) {
            (Ok(_), true) => self.init_started(tag),
            (Err(error), true) => self.init_not_started(tag, error),
            (Ok(guest_pid), false) => self.exec_started(tag, guest_pid),
            (Err(error), false) => self.exec_not_started(tag, error),
        }
    }

    fn init_started(&mut self, tag: &ProcessKey) {
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let ended = container.init.state == TaskState::Exiting;
        container.init.advance(Input::Started);
        let (pid, reply) = (container.pid, container.init.starting.take());
        self.events.publish(&TaskEvent::Started {
            id: &tag.name.container,
            pid,
        });
        self.recorder.step("container started", clock::monotonic_ns());
        self.recorder.write();
        if let Some(reply) = reply {
            answer(reply, Ok(pid));
        }
        if ended {
            self.stopped(tag);
        }
    }

    fn init_not_started(&mut self, tag: &ProcessKey, error: Error) {
        crate::log::error(format_args!("start {}: {error}", tag.name.container));
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let ended = container.init.state == TaskState::Exiting;
        container.init.advance(Input::StartFailed);
        if let Some(reply) = container.init.starting.take() {
            answer(reply, Err(error));
        }
        if ended {
            self.stopped(tag);
        }
    }

    fn exec_started(&mut self, tag: &ProcessKey, guest_pid: Option<u32>) {
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let pid = container.pid;
        let Some(exec) = container.execs.get_mut(&tag.name.exec) else {
            return;
        };
        let process = &mut exec.process;
        let ended = process.state == TaskState::Exiting;
        process.advance(Input::Started);
        process.guest_pid = guest_pid;
        let (reply, size) = (process.starting.take(), exec.size.take());
        self.events.publish(&TaskEvent::ExecStarted {
            id: &tag.name.container,
            exec: &tag.name.exec,
            pid,
        });
        if let Some(reply) = reply {
            answer(reply, Ok(pid));
        }
        if ended {
            return self.stopped(tag);
        }
        self.wait_in_guest(tag);
        if let (Some(size), Ok(guest)) = (size, self.guest()) {
            let name = tag.name.clone();
            tokio::spawn(async move {
                // It may have ended already.
                if let Err(CallError::Answer(code, message)) = guest.resize(&name, size).await {
                    crate::log::info(format_args!("resizing {name}: {code:?}: {message}"));
                }
            });
        }
    }

    /// It is over: its streams' ports may be used up in the guest, so it is not to be started again. containerd hears of
    /// no end where it heard of no start.
    fn exec_not_started(&mut self, tag: &ProcessKey, error: Error) {
        crate::log::error(format_args!("start {}: {error}", tag.name));
        let Some(container) = self.container_of_key(tag) else {
            return;
        };
        let Some(process) = container.process_mut(&tag.name.exec) else {
            return;
        };
        process.advance(Input::NeverRan);
        let never = Exit {
            status: NEVER_RAN_STATUS,
            at_ns: clock::realtime_ns(),
            oom_kills: 0,
        };
        process.exit.get_or_insert(never);
        if let Some(reply) = process.starting.take() {
            answer(reply, Err(error));
        }
        let ports = process.streams.ports().to_vec();
        for port in ports {
            self.ports.remove(&port);
        }
        self.settle(tag);
    }
}
