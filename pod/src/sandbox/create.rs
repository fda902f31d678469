//! The way of a container into the guest: planned and opened at once, so that a spec that can't be honoured is refused
//! without waiting; then, in a task of its own, mounted, placed when the VMM's namespace is there, and created when the
//! agent is.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::Stdio;
use tokio::sync::{mpsc, watch};

use super::{Event, Progress, Sandbox, failed, log_ignored_fields};
use crate::bundle::{self, Plan, Pod};
use crate::clock;
use crate::container::{Container, CreateRequest};
use crate::container::{Input, TaskState};
use crate::container::{Process, Reply, answer};
use crate::error::{Error, StepFailed};
use crate::event::TaskEvent;
use crate::guest::{CallError, Guest};
use crate::hooks::Point;
use crate::identity;
use crate::process_id::ProcessId;
use crate::rootfs;

/// A lost stream is most likely a VM that ends: its reason is worth this wait.
const END_DEADLINE: Duration = Duration::from_secs(5);

impl Sandbox {
    pub(super) fn create(&mut self, request: CreateRequest, reply: Reply<u32>) {
        match self.begin_create(&request) {
            Ok((init, job)) => {
                let id = request.id.clone();
                let container = Container::new(request, job.pid, init, job.plan.hooks.clone(), reply);
                self.containers.insert(id, container);
                let queue = self.queue.clone();
                tokio::spawn(async move {
                    let id = job.id.clone();
                    let result = job.run().await;
                    // The owner is gone only with the shim.
                    let _ = queue.send(Event::Created(id, result)).await;
                });
            }
            Err(error) => {
                crate::log::error(format_args!("create {}: {error}", request.id));
                answer(reply, Err(error));
            }
        }
    }

    fn begin_create(&mut self, request: &CreateRequest) -> Result<(Process, Job), Error> {
        check_id(&request.id)?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::Exists(ProcessId::init(&request.id)));
        }
        if self.closing {
            return Err(Error::Closing);
        }
        self.recorder.step("create called", clock::monotonic_ns());
        let file = identity::config_json(&request.bundle);
        let spec = std::fs::read(&file)
            .map_err(|error| failed("read spec", format_args!("{}: {error}", file.display()), None))?;
        let pod = self.vm.as_ref().map(|vm| Pod {
            pid: vm.pid(),
            sandbox: &self.identity.id,
        });
        let plan = bundle::plan(&request.id, &request.bundle, &spec, request.rootfs.clone(), pod)
            .map_err(|error| Error::Refused(error.to_string()))?;
        log_ignored_fields(&ProcessId::init(&request.id), &plan.ignored);
        if plan.terminal != request.paths.terminal {
            let reason = if plan.terminal {
                "is true, but Create wants no terminal"
            } else {
                "is not true, but Create wants a terminal"
            };
            return Err(Error::Refused(format!("process.terminal: {reason}")));
        }
        let (streams, stdio) = self.open_streams(&request.paths, &request.id)?;
        let tag = self.tag(ProcessId::init(&request.id));
        let init = Process::new(tag, TaskState::Creating, request.paths.clone(), streams);
        let job = Job {
            id: request.id.clone(),
            plan,
            stdio,
            pid: self.vm.as_ref().map_or(0, |vm| vm.pid()),
            vmm: self.vm.as_ref().map(|vm| vm.shared_pidfd()),
            progress: self.progress.subscribe(),
            queue: self.queue.clone(),
        };
        Ok((init, job))
    }

    pub(super) fn created(&mut self, id: &str, result: Result<u32, Error>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let reply = container.creating.take();
        match result {
            Ok(guest_pid) => {
                container.init.advance(Input::Created);
                container.init.guest_pid = Some(guest_pid);
                let (pid, tag) = (container.pid, container.init.tag.clone());
                self.recorder.step("container created", clock::monotonic_ns());
                crate::log::info(format_args!("{id} created, pid {guest_pid} in the guest"));
                self.events.publish(&TaskEvent::Created {
                    request: &container.request,
                    pid,
                });
                if let Some(reply) = reply {
                    answer(reply, Ok(pid));
                }
                self.wait_in_guest(&tag);
                self.watch_memory(&tag, 0);
            }
            Err(error) => {
                crate::log::error(format_args!("create {id}: {error}"));
                if let Some(container) = self.containers.remove(id) {
                    self.discard_ports(&container.init.streams);
                    container.init.abandon(container.pid);
                }
                self.recorder.write();
                if let Some(reply) = reply {
                    answer(reply, Err(error));
                }
            }
        }
    }
}

/// The id becomes the name of a directory.
fn check_id(id: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.starts_with('.') || !id.chars().all(plain) {
        return Err(Error::InvalidId(id.to_owned()));
    }
    Ok(())
}

/// What is done for a container outside the owner.
struct Job {
    id: String,
    plan: Plan,
    stdio: Stdio,
    /// The VMM's.
    pid: u32,
    vmm: Option<Arc<OwnedFd>>,
    progress: watch::Receiver<Progress>,
    queue: mpsc::Sender<Event>,
}

impl Job {
    async fn run(mut self) -> Result<u32, Error> {
        self.place().await?;
        let result = self.create().await;
        if result.is_err() {
            self.plan.hooks.run_all(Point::Poststop, self.pid).await;
        }
        result
    }

    /// Gives the VMM what the container sees of the host.
    async fn place(&mut self) -> Result<(), Error> {
        let placements = rootfs::detach(&self.id, &self.plan.rootfs, &self.plan.mounts)
            .await
            .map_err(|error| failed("mount root file system", error, None))?;
        self.step("host mounts made").await;
        self.running().await?;
        let vmm = self.vmm.take().ok_or(Error::Closing)?;
        if let Err(error) = rootfs::move_into_vmm(vmm.as_fd(), &placements).await {
            let step = failed("place root file system", error, None);
            return Err(ended(&mut self.progress).await.unwrap_or(step).into());
        }
        drop(placements);
        self.step("host mounts placed").await;
        Ok(())
    }

    async fn create(&mut self) -> Result<u32, Error> {
        for point in [Point::Prestart, Point::CreateRuntime] {
            let run = self.plan.hooks.run(point, self.pid).await;
            run.map_err(|error| failed("run hooks", error, None))?;
        }
        let guest = self.ready().await?;
        let spec = std::mem::take(&mut self.plan.guest_spec);
        match guest
            .create(&self.id, spec, std::mem::take(&mut self.stdio))
            .await
        {
            Ok(pid) => Ok(pid),
            Err(error @ CallError::Answer(..)) => Err(error.into_error("create container")),
            Err(error @ CallError::Lost(_)) => match ended(&mut self.progress).await {
                Some(reason) => Err(reason.into()),
                None => Err(error.into_error("create container")),
            },
        }
    }

    async fn step(&self, name: &'static str) {
        // The owner is gone only with the shim.
        let _ = self.queue.send(Event::Step(name, clock::monotonic_ns())).await;
    }

    async fn running(&mut self) -> Result<(), Error> {
        match &*changed(&mut self.progress, |progress| {
            !matches!(progress, Progress::Starting)
        })
        .await?
        {
            Progress::Ended(reason) => Err(StepFailed::clone(reason).into()),
            Progress::Starting | Progress::Running | Progress::Ready(_) => Ok(()),
        }
    }

    async fn ready(&mut self) -> Result<Guest, Error> {
        let known = |progress: &Progress| matches!(progress, Progress::Ready(_) | Progress::Ended(_));
        match &*changed(&mut self.progress, known).await? {
            Progress::Ready(guest) => Ok(guest.clone()),
            Progress::Ended(reason) => Err(StepFailed::clone(reason).into()),
            Progress::Starting | Progress::Running => Err(Error::Closing),
        }
    }
}

async fn changed(
    progress: &mut watch::Receiver<Progress>,
    until: impl FnMut(&Progress) -> bool,
) -> Result<watch::Ref<'_, Progress>, Error> {
    progress.wait_for(until).await.map_err(|_| Error::Closing)
}

/// The reason of the VM's end, where it ends about now.
pub(super) async fn ended(progress: &mut watch::Receiver<Progress>) -> Option<StepFailed> {
    let end = progress.wait_for(|progress| matches!(progress, Progress::Ended(_)));
    match &*tokio::time::timeout(END_DEADLINE, end).await.ok()?.ok()? {
        Progress::Ended(reason) => Some(StepFailed::clone(reason)),
        Progress::Starting | Progress::Running | Progress::Ready(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_directories() {
        for good in ["a", "e2e-1_x.y", "0123456789abcdef"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "a b", ".hidden", "ä"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
