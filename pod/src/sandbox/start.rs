//! Start: of an init process, which has been waiting for it since Create, and of an exec process, which the
//! guest makes now.

use nacre_protocol::fault::{self, FaultPoint};
use tokio::sync::watch;

use super::progress::explained;
use super::queue::Event;
use super::resize::{Fit, Sizing};
use super::{Sandbox, reach_when_sent};
use crate::container::{self, Container, Exec, Reply, TaskState, answer};
use crate::error::Error;
use crate::event::TaskEvent;
use crate::exit::Exit;
use crate::guest::CallError;
use crate::hooks::Point;
use crate::process_id::{ProcessId, ProcessKey};
use crate::{clock, log};

/// The exit status of a process whose command was never run: containerd's UnknownExitStatus.
const NEVER_RAN_STATUS: u32 = 255;

impl Sandbox {
    pub(super) fn start(&mut self, name: &ProcessId, reply: Reply<u32>) {
        let checked = self.check_start(name).and_then(|()| self.guest()).and_then(|_| {
            let event = container::Event::StartCalled(name.exec.clone());
            self.feed(&name.container, event)
                .map_err(|_| self.refuse_process(name, "started"))
        });
        match (checked, self.process_mut(name)) {
            (Ok(()), Ok(process)) => process.starting = Some(reply),
            (Err(error), _) | (Ok(()), Err(error)) => answer(reply, Err(error)),
        }
    }

    /// Says why a process can't be started: its own state, or, for an exec process, its container's.
    fn check_start(&mut self, name: &ProcessId) -> Result<(), Error> {
        self.process_mut(name)?;
        let container = self.container(&name.container)?;
        let state = container
            .lifecycle
            .process(&name.exec)
            .map(|process| process.state);
        if state != Some(TaskState::Created) {
            return Err(if name.is_init() {
                container.refuse("started")
            } else {
                self.refuse_process(name, "started")
            });
        }
        if !name.is_init() && !container.lifecycle.accepts_exec() {
            return Err(container.refuse("joined by an exec process"));
        }
        Ok(())
    }

    pub(super) fn start_in_guest(&mut self, id: &str, exec: &str) {
        if self.is_pause(id) {
            return self.start_pause(id);
        }
        let Ok(guest) = self.guest() else { return };
        if exec.is_empty() {
            let key = self
                .containers
                .get(id)
                .map(|container| container.init.key.clone());
            if key.is_some_and(|key| self.awaits_late_links(&key)) {
                return;
            }
        }
        let mut progress = self.progress.subscribe();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if exec.is_empty() {
            let (key, pid) = (container.init.key.clone(), container.pid);
            let hooks = container
                .hooks
                .has(Point::Poststart)
                .then(|| container.hooks.clone());
            let fit = self.sizing.as_ref().map(Sizing::fit);
            self.queue.send_result(async move {
                if let Err(error) = has_size(fit).await {
                    return Event::Started(key, Err(error));
                }
                fault::reach(FaultPoint::StartAsks);
                let result = guest.start(&key.name.container).await;
                fault::reach(FaultPoint::StartAnswered);
                if let (Ok(()), Some(hooks)) = (&result, hooks) {
                    hooks.run_all(Point::Poststart, pid).await;
                }
                let result = explained(result, "start container", &mut progress).await;
                Event::Started(key, result.map(|()| None))
            });
        } else if let Some(exec) = container.execs.get_mut(exec) {
            let key = exec.process.key.clone();
            let (spec, stdio) = (exec.take_guest_spec(), std::mem::take(&mut exec.stdio));
            self.queue.send_result(async move {
                fault::reach(FaultPoint::ExecAsks);
                let result = guest.start_exec(&key.name, spec, stdio).await;
                fault::reach(FaultPoint::ExecAnswered);
                let result = explained(result, "start process", &mut progress).await;
                Event::Started(key, result.map(Some))
            });
        }
    }

    /// The guest answered a start.
    pub(super) fn started(&mut self, key: &ProcessKey, result: Result<Option<u32>, Error>) {
        let Some(container) = self.container_of_key(key) else {
            return;
        };
        let Some(process) = container.process_mut(&key.name.exec) else {
            return;
        };
        let exec = key.name.exec.clone();
        let event = match result {
            Ok(guest_pid) => {
                process.guest_pid = process.guest_pid.or(guest_pid);
                container::Event::Started(exec)
            }
            Err(error) => {
                log::error(format_args!("start {}: {error}", key.name));
                process.start_error = Some(error);
                if exec.is_empty() {
                    container::Event::StartFailed
                } else {
                    container::Event::ExecFailed(exec, never_ran())
                }
            }
        };
        self.advance(key, event);
    }

    pub(super) fn report_started(&mut self, id: &str, exec: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let pid = container.pid;
        let reply = container
            .process_mut(exec)
            .and_then(|process| process.starting.take());
        if exec.is_empty() {
            self.events.publish(&TaskEvent::Started { id, pid });
            self.recorder.step("container started", clock::monotonic_ns());
            self.recorder.write();
            self.follow_memory();
            if !self.is_pause(id) {
                self.make_template();
                self.plan_common_devices();
            }
        } else {
            self.events.publish(&TaskEvent::ExecStarted { id, exec, pid });
        }
        if let Some(reply) = reply {
            answer(reply, Ok(pid));
        }
        reach_when_sent(if exec.is_empty() {
            FaultPoint::StartReported
        } else {
            FaultPoint::ExecReported
        });
        self.apply_early_resize(id, exec);
    }

    /// Sets the terminal size that ResizePty asked for while the exec process was being started.
    fn apply_early_resize(&mut self, id: &str, exec: &str) {
        let guest = self.guest();
        let find = |container: &mut Container| {
            let exec: &mut Exec = container.execs.get_mut(exec)?;
            Some((exec.size.take()?, exec.process.key.name.clone()))
        };
        let (Some((size, name)), Ok(guest)) = (self.containers.get_mut(id).and_then(find), guest) else {
            return;
        };
        tokio::spawn(async move {
            // It may have exited already.
            if let Err(CallError::Answer(code, message)) = guest.resize(&name, size).await {
                log::info(format_args!("resizing {name}: {code:?}: {message}"));
            }
        });
    }

    pub(super) fn report_start_failed(&mut self, id: &str, exec: &str) {
        let Some(process) = self.find_process_mut(id, exec) else {
            return;
        };
        let error = process.start_error.take().unwrap_or(Error::Closing);
        if let Some(reply) = process.starting.take() {
            answer(reply, Err(error));
        }
        if !exec.is_empty() {
            // It can't be started again, so its streams will not be opened.
            let addresses = process.streams.addresses().to_vec();
            for address in addresses {
                self.expected_streams.remove(&address);
            }
        }
    }
}

/// Waits until the VM has the size that the containers need.
async fn has_size(fit: Option<watch::Receiver<Fit>>) -> Result<(), Error> {
    let Some(mut fit) = fit else { return Ok(()) };
    let known = fit.wait_for(|fit| !matches!(fit, Fit::Changing)).await;
    match known.as_deref() {
        Ok(Fit::Failed(error)) => Err(error.clone()),
        Ok(Fit::Fits | Fit::Changing) => Ok(()),
        Err(_) => Err(Error::Closing),
    }
}

fn never_ran() -> Exit {
    Exit {
        status: NEVER_RAN_STATUS,
        at_ns: clock::realtime_ns(),
        oom_kills: 0,
    }
}
