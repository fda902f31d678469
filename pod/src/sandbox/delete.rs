//! Delete: of an exec process, of a container with what is left of it in the guest, and of a container that
//! is still being created, which cancels the creation.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nacre_protocol::fault::{self, FaultPoint};
use tokio::sync::watch;

use super::queue::Event;
use super::unused::NEXT_CALL;
use super::{Progress, Sandbox, reach_when_sent, volumes};
use crate::container::{self, Deleted, Process, ProcessState, Reply, TaskState, answer};
use crate::error::Error;
use crate::event::TaskEvent;
use crate::exit::Exit;
use crate::guest::{CallError, Guest, SIGKILL};
use crate::process_id::ProcessId;
use crate::vm::Vm;
use crate::{log, rootfs};

impl Sandbox {
    pub(super) fn delete(&mut self, name: &ProcessId, reply: Reply<Deleted>) {
        fault::reach(FaultPoint::DeleteCalled);
        let process = match self.process_mut(name) {
            Ok(process) => process,
            Err(error) => return answer(reply, Err(error)),
        };
        // The machine refuses a second Delete, whose reply must not take the place of the first. If the first
        // caller has left (its containerd was restarted), the second takes over.
        match &process.deleting {
            Some(first) if !first.is_closed() => {
                return answer(reply, Err(self.refuse_process(name, "deleted")));
            }
            Some(_) | None => process.deleting = Some(reply),
        }
        if self.is_deleting(name) {
            return;
        }
        let event = container::Event::DeleteCalled(name.exec.clone());
        if self.feed(&name.container, event).is_err() {
            let refused = self.refuse_process(name, "deleted");
            let reply = self
                .process_mut(name)
                .ok()
                .and_then(|process| process.deleting.take());
            if let Some(reply) = reply {
                answer(reply, Err(refused));
            }
        }
    }

    /// Stops what is under way for a Create. A container that is the VM's own takes the VM with it.
    pub(super) fn cancel_create(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            log::info(format_args!("create {id}: cancelled by Delete"));
            container.cancel_create = None;
        }
        if self.owns_vm(id) {
            self.discard_vm();
        }
    }

    /// Kills an init process that was never started; its exit comes as any other.
    pub(super) fn kill_unstarted_init(&mut self, id: &str) {
        if self.owns_vm(id) {
            return self.discard_vm();
        }
        let Ok(guest) = self.guest() else { return };
        self.enforce_kill(id);
        let name = ProcessId::init(id);
        tokio::spawn(async move {
            if let Err(error) = guest.kill(&name, SIGKILL, true).await {
                log::warn(format_args!("killing {name}, which was never started: {error:?}"));
            }
        });
    }

    pub(super) fn remove_exec(&mut self, id: &str, exec: &str, exit: Option<Exit>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let pid = container.pid;
        if let Some(exec) = container.execs.remove(exec) {
            let deleted = exec.process.deleted(pid, exit);
            self.abandon(exec.process, deleted);
        }
    }

    pub(super) fn remove_container(&mut self, id: &str) {
        let Some(mut container) = self.containers.remove(id) else {
            return;
        };
        self.remove_from_size(id);
        let pid = container.pid;
        let lifecycle = &container.lifecycle;
        let exit_of = |exec: &str| lifecycle.process(exec).and_then(ProcessState::exit);
        for (name, exec) in std::mem::take(&mut container.execs) {
            let deleted = exec.process.deleted(pid, exit_of(&name));
            self.abandon(exec.process, deleted);
        }
        let deleted = container.init.deleted(pid, exit_of(""));
        // No exit means that it was never created: no TaskCreate was published, and nothing is left in the
        // guest.
        let Some(exit) = deleted.exit else {
            self.abandon(container.init, deleted);
            return self.limit_unused(NEXT_CALL);
        };
        self.discard_streams(&container.init.streams);
        if container.is_published {
            self.events.publish(&TaskEvent::Deleted { id, pid, exit });
        }
        let Some(reply) = container.init.deleting.take() else {
            return;
        };
        // The guest writes what it has cached of disks before its VM ends.
        let guest = if self.owns_vm(id) && !container.has_disks {
            self.discard_vm();
            None
        } else {
            self.progress.borrow().guest()
        };
        let poststop = container.poststop;
        if guest.is_none() && poststop.is_empty() {
            answer(reply, Ok(deleted));
            reach_when_sent(FaultPoint::DeleteAnswered);
            return self.limit_unused(NEXT_CALL);
        }
        let id = id.to_owned();
        let vmm = self.vm.as_ref().map(Vm::shared_pidfd);
        let disks = self.vm.as_ref().map(Vm::disks).filter(|_| container.has_disks);
        let progress = self.progress.subscribe();
        let mirrors = self.mirrors.clone();
        let volumes = self.shared_mounts.release(&id);
        self.deleting.insert(id.clone());
        self.queue.send_result(async move {
            let result = delete_in_guest(guest.as_ref(), &id).await;
            if let (Some(vmm), Some(_)) = (vmm, &guest) {
                remove_files(&vmm, &id, &container.mount_points, &progress).await;
                volumes::remove(&vmm, &volumes, &progress).await;
            }
            if let Some(disks) = disks {
                disks.release(guest.as_ref(), &id).await;
            }
            if let Some(mirrors) = mirrors {
                mirrors.release(&id).await;
            }
            poststop.run(pid).await;
            Event::Deleted(id, reply, result.map(|()| deleted))
        });
    }

    /// Nothing is left of the container: its id may be used again.
    pub(super) fn deleted(&mut self, id: &str, reply: Reply<Deleted>, result: Result<Deleted, Error>) {
        self.deleting.remove(id);
        if self.owns_vm(id) && !self.closing {
            self.discard_vm();
        }
        answer(reply, result);
        reach_when_sent(FaultPoint::DeleteAnswered);
        self.limit_unused(NEXT_CALL);
    }

    /// Drops a process that was removed, and answers whoever still waits for something of it.
    fn abandon(&mut self, process: Process, deleted: Deleted) {
        self.discard_streams(&process.streams);
        process.abandon(deleted);
    }

    fn is_deleting(&self, name: &ProcessId) -> bool {
        let process = self.find(name).ok().and_then(|(container, _)| {
            let lifecycle = &container.lifecycle;
            lifecycle.process(&name.exec)
        });
        process.is_some_and(ProcessState::is_deleting)
    }

    /// The error for a process whose state does not allow it to be `wanted`.
    pub(super) fn refuse_process(&self, name: &ProcessId, wanted: &'static str) -> Error {
        let state = self
            .containers
            .get(&name.container)
            .and_then(|container| container.lifecycle.process(&name.exec));
        Error::State {
            name: name.clone(),
            state: state.map_or(TaskState::Stopped, |process| process.state).name(),
            wanted,
        }
    }
}

/// Removes a container's mounts from the VMM's mount namespace, and what the guest has cached of their files,
/// for each of which the VMM has a descriptor. A failure is logged: the container is gone all the same, and
/// the rest ends with the VM.
pub(super) async fn remove_files(
    vmm: &OwnedFd,
    id: &str,
    mount_points: &[PathBuf],
    progress: &watch::Receiver<Progress>,
) {
    if mount_points.is_empty() {
        return;
    }
    let removed = rootfs::remove_from_vmm(vmm.as_fd(), mount_points).await;
    let progress = progress.borrow().clone();
    if matches!(progress, Progress::Ended(_)) {
        return;
    }
    if let Err(error) = removed {
        return log::error(format_args!("delete {id}: {error}"));
    }
    // A guest that is not ready has not seen the files.
    let Some(guest) = progress.guest() else { return };
    match guest.forget_files(id).await {
        Ok(()) | Err(CallError::Lost(_)) => {}
        Err(error) => {
            let error = error.into_error("forget files");
            log::error(format_args!("delete {id}: {error}"));
        }
    }
}

async fn delete_in_guest(guest: Option<&Guest>, id: &str) -> Result<(), Error> {
    let Some(guest) = guest else { return Ok(()) };
    match guest.delete(id).await {
        // Lost with the VM: there is nothing left to delete.
        Ok(()) | Err(CallError::Lost(_)) => Ok(()),
        Err(error @ (CallError::Answer(..) | CallError::TimedOut)) => {
            Err(error.into_error("delete container"))
        }
    }
}
