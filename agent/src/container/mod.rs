//! The containers of a guest: the table of them, and each one's lifecycle from creation to removal. The
//! service calls this module; it uses the reaper, the cgroup and the standard streams, and knows
//! nothing of RPC.
//!
//! Lock order: the table, then a container's lifecycle. No lock is held across an await, except
//! `freeze_lock` and `update_lock`.

mod create;
mod exec;
mod freeze;
mod process;
mod state;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::agent::IdRange;
use oci_spec::runtime::Spec;
use rustix::process::Pid;
use tokio::sync::{RwLock, watch};
use tokio::task::AbortHandle;

use self::process::Process;
use self::state::{Input, Lifecycle, TaskState};
use crate::cgroup::Cgroup;
use crate::child::{Filter, Filters};
use crate::dial::Dialer;
use crate::disk::{DisksByHostNumber, MountedFileSystems};
use crate::error::Error;
use crate::pod::{self, SharedInit};
use crate::reaper::{Exit, Reaper};
use crate::runtime::Gate;
use crate::signal;
use crate::spec;

/// How long the kernel may take to end a container's processes after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// All containers of the guest.
pub struct Containers {
    dialer: Dialer,
    reaper: Arc<Reaper>,
    /// By id; None while the container is being created.
    table: Mutex<HashMap<String, Option<Arc<Container>>>>,
    shared_init: SharedInit,
    filters: Filters,
}

/// One container, from the time its init waits for the start notification.
pub struct Container {
    id: String,
    /// The spec that the container was created from.
    spec: Spec,
    /// Its seccomp filter.
    filter: Option<Arc<Filter>>,
    /// The parts of the spec that have no effect in this guest.
    ignored: Vec<String>,
    disks: DisksByHostNumber,
    init: Arc<Process>,
    init_pidfd: OwnedFd,
    /// Sends the start notification; None once it was sent.
    gate: Mutex<Option<Gate>>,
    cgroup: Cgroup,
    /// Of its disks.
    file_systems: Mutex<MountedFileSystems>,
    lifecycle: Mutex<Lifecycle>,
    /// Exec processes by exec id; None while the process is being started.
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    /// Read-locked while an exec process is being started, write-locked while the cgroup is being frozen: a
    /// child frozen before its execve would leave StartExec waiting.
    freeze_lock: RwLock<()>,
    /// Locked while limits are updated, which may take as long as the kernel reclaims.
    update_lock: tokio::sync::Mutex<()>,
    /// Number of the container's processes that the kernel has OOM-killed.
    oom_kills: watch::Sender<u64>,
    oom_watcher: Mutex<Option<AbortHandle>>,
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(watcher) = lock(&self.oom_watcher).take() {
            watcher.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers {
    /// An empty table. `dialer` opens the containers' standard streams.
    pub fn new(dialer: Dialer, reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            reaper,
            table: Mutex::default(),
            shared_init: SharedInit::default(),
            filters: Filters::default(),
        })
    }

    /// Makes the pod's user namespace with these id maps, which containers then join; nothing if there are
    /// none.
    pub fn enter_users(&self, uids: &[IdRange], gids: &[IdRange]) -> Result<(), Error> {
        if uids.is_empty() && gids.is_empty() {
            return Ok(());
        }
        pod::enter_users(&self.shared_init, &self.reaper, uids, gids)
    }

    /// The container `id`.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        let found = lock(&self.table).get(id).cloned().flatten();
        found.ok_or_else(|| Error::ContainerNotFound { id: id.to_owned() })
    }

    /// The pid of container `id`'s init, for entering its namespaces; an error if init has exited.
    pub fn init_of(&self, id: &str) -> Result<Pid, Error> {
        let container = self.get(id)?;
        if lock(&container.lifecycle).task == TaskState::Stopped {
            return Err(Error::ProcessFinished);
        }
        Ok(container.init.pid())
    }

    /// A process of container `id`: the exec process `exec_id`, or init if `exec_id` is empty.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, Error> {
        let container = self.get(id)?;
        if exec_id.is_empty() {
            return Ok(Arc::clone(&container.init));
        }
        let found = lock(&container.execs).get(exec_id).cloned().flatten();
        found.ok_or_else(|| Error::ProcessNotFound {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        })
    }

    /// Waits for a process to exit; returns its exit and the container's number of OOM kills. An exec process
    /// is then removed from the table, so that its id may be used again.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<(Exit, u64), Error> {
        let container = self.get(id)?;
        let exit = self.process(id, exec_id)?.wait().await;
        lock(&container.execs).remove(exec_id);
        Ok((exit, *container.oom_kills.borrow()))
    }

    /// Removes a container that is created or stopped; kills the init of a created one.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let container = self.get(id)?;
        let before = container.apply(Input::Delete, "delete")?;
        if before.task == TaskState::Created {
            container.init.kill(libc::SIGKILL)?;
        }
        let removed = async {
            container.init.wait().await;
            container.cgroup.remove().await
        };
        let timed_out = |_| {
            let seconds = KILL_TIMEOUT.as_secs();
            io::Error::other(format!(
                "timed out after {seconds} s waiting for its killed processes"
            ))
        };
        tokio::time::timeout(KILL_TIMEOUT, removed)
            .await
            .map_err(timed_out)
            .map_err(Error::system(format!("deleting container {id:?}")))??;
        let file_systems = std::mem::take(&mut *lock(&container.file_systems));
        file_systems.unmount().await?;
        lock(&self.table).remove(id);
        Ok(())
    }
}

impl Container {
    /// Applies `input` to the lifecycle and returns the states before. An input that is not allowed is an
    /// error: "cannot `action` container …".
    fn apply(&self, input: Input, action: &'static str) -> Result<Lifecycle, Error> {
        self.transition(|lifecycle| lifecycle.next(input), action)
    }

    fn transition(
        &self,
        next: impl FnOnce(Lifecycle) -> Option<Lifecycle>,
        action: &'static str,
    ) -> Result<Lifecycle, Error> {
        let mut lifecycle = lock(&self.lifecycle);
        let before = *lifecycle;
        *lifecycle = next(before).ok_or_else(|| self.wrong_state(before, action))?;
        Ok(before)
    }

    fn wrong_state(&self, lifecycle: Lifecycle, action: &'static str) -> Error {
        Error::WrongState {
            id: self.id.clone(),
            state: lifecycle.name(),
            action,
        }
    }

    /// Notifies init, which then executes the container's command.
    pub fn start(&self) -> Result<(), Error> {
        self.apply(Input::Start, "start")?;
        let gate = lock(&self.gate).take();
        let opened = gate.map_or(Err(Error::ProcessFinished), Gate::open);
        let input = if opened.is_ok() {
            Input::Started
        } else {
            Input::StartFailed
        };
        self.apply(input, "start")?;
        opened
    }

    /// Sends `signal` to every process in the container.
    pub fn kill_all(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.pids()? {
            // A process that has exited meanwhile is not an error.
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.map_or(Ok(()), |pid| signal::send(pid, signal))
                .map_err(Error::system("sending a signal"))?;
        }
        Ok(())
    }

    /// Sets the limits that `resources` (the OCI `linux.resources` object, JSON) has; the others keep their
    /// values. Returns the fields that have no effect, each as a JSON path and the reason.
    pub async fn update(&self, resources: &[u8]) -> Result<Vec<String>, Error> {
        let _one_at_a_time = self.update_lock.lock().await;
        let lifecycle = *lock(&self.lifecycle);
        if !lifecycle.accepts_update() {
            return Err(self.wrong_state(lifecycle, "update"));
        }
        let (limits, ignored) = spec::parse_update(resources, &self.disks)?;
        self.cgroup.update(&limits).await?;
        Ok(ignored)
    }

    /// The parts of the spec that have no effect in this guest, each as a JSON path and the reason.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The counters in the cgroup's files, by file name.
    pub fn stats(&self) -> Result<HashMap<String, Vec<u8>>, Error> {
        self.cgroup.stats()
    }

    /// Follows the cgroup's count of OOM kills until the container is dropped.
    fn watch_oom_kills(self: &Arc<Self>) {
        let container = Arc::downgrade(self);
        let Ok(Some(mut events)) = self.cgroup.memory_events() else {
            return;
        };
        let watcher = tokio::spawn(async move {
            while let Ok(kills) = events.changed().await {
                let Some(container) = container.upgrade() else {
                    return;
                };
                container.oom_kills.send_replace(kills);
            }
        });
        *lock(&self.oom_watcher) = Some(watcher.abort_handle());
    }

    /// Reads the count of OOM kills now, so that the exit which one of them causes carries it.
    fn update_oom_kills(&self) {
        if let Ok(Some(kills)) = self.cgroup.oom_kills() {
            self.oom_kills.send_replace(kills);
        }
    }

    /// Waits until more than `known` of the container's processes have been OOM-killed.
    pub async fn wait_oom(self: Arc<Self>, known: u64) -> Result<u64, Error> {
        let mut kills = self.oom_kills.subscribe();
        let id = self.id.clone();
        // Without a reference, so that deleting the container drops the sender and ends this wait.
        drop(self);
        match kills.wait_for(|kills| *kills > known).await {
            Ok(kills) => Ok(*kills),
            Err(_) => Err(Error::ContainerNotFound { id }),
        }
    }

    /// The pids of all the container's processes, in the guest's pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        self.cgroup.pids()
    }

    /// Init's pid, in the guest's pid namespace.
    pub fn init_pid(&self) -> u32 {
        self.init.pid_number()
    }

    /// Records init's exit and kills the container's other processes, which must not outlive it. The reaper
    /// calls this.
    fn init_exited(&self, exit: Exit) {
        let mut lifecycle = lock(&self.lifecycle);
        if let Some(next) = lifecycle.next(Input::Exited) {
            *lifecycle = next;
        }
        drop(lifecycle);
        self.update_oom_kills();
        self.init.exited(exit);
        if let Err(error) = self.cgroup.kill() {
            crate::report::to_console(&format!(
                "killing the processes of container {:?} after its init exited: {error}",
                self.id
            ));
        }
    }
}

/// `signal` as a number for kill(2); an error unless it is 0..=SIGRTMAX.
pub fn check_signal(signal: u32) -> Result<i32, Error> {
    i32::try_from(signal)
        .ok()
        .filter(|signal| (0..=libc::SIGRTMAX()).contains(signal))
        .ok_or_else(|| Error::BadRequest {
            what: format!("expected a signal in 0..={}, got {signal}", libc::SIGRTMAX()),
        })
}
