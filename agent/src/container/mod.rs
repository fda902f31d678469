//! The containers of a guest: the table of them, and each one's life from creation to removal. The service calls it;
//! it uses the helper, the reaper, the cgroup and the standard streams, and knows nothing of RPC.
//!
//! Lock order: the table, then a container's state; neither is held while anything is awaited.

mod create;
mod exec;
mod process;
mod spec;
mod state;
mod workdir;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::process::Pid;
use tokio::sync::{RwLock, watch};
use tokio::task::AbortHandle;

use self::process::Process;
pub use self::spec::{Later, Names, has_namespace};
use self::state::{Event, State};
use crate::cgroup::Cgroup;
use crate::dial::Dialer;
use crate::error::Error;
use crate::reaper::{Exit, Reaper};
use crate::runtime::Helper;
use crate::signal;

/// libcontainer's state, one directory a container. Short: a socket's path in it has 107 bytes at most.
const STATE: &str = "/run/nacre/c";
/// Bundles, one directory a container.
const BUNDLES: &str = "/run/nacre/b";
/// How long a container's processes may take to stand still: less than the host waits for an answer.
const FROZEN: Duration = Duration::from_secs(40);
/// How long a container's processes may take to end once they were killed.
const END: Duration = Duration::from_secs(10);

/// All containers.
pub struct Containers {
    program: PathBuf,
    dialer: Dialer,
    reaper: Arc<Reaper>,
    /// None: the id is taken by a container that is being made.
    table: Mutex<HashMap<String, Option<Arc<Container>>>>,
    spare: Mutex<Option<Helper>>,
}

/// One container, from the time its init waits at the gate.
pub struct Container {
    id: String,
    /// As it was made.
    spec: Spec,
    /// What of its spec has no effect in this guest.
    ignored: Vec<String>,
    init: Arc<Process>,
    /// Init's.
    pidfd: OwnedFd,
    cgroup: Cgroup,
    state: Mutex<State>,
    /// None: the name is taken by a process that is being started.
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    /// Read while a process is being started, written while all are being frozen.
    freezing: RwLock<()>,
    /// Processes killed for want of memory.
    oom_kills: watch::Sender<u64>,
    counting: Mutex<Option<AbortHandle>>,
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(counting) = lock(&self.counting).take() {
            counting.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers {
    /// None yet. `program` is the agent's own, `dialer` opens their standard streams.
    pub fn new(program: PathBuf, dialer: Dialer, reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self {
            program,
            dialer,
            reaper,
            table: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    /// Has a helper ready for the next container.
    pub fn prepare(&self) -> Result<(), Error> {
        let helper = Helper::start(&self.program)?;
        *lock(&self.spare) = Some(helper);
        Ok(())
    }

    fn helper(&self) -> Result<Helper, Error> {
        let spare = lock(&self.spare).take();
        spare.map_or_else(|| Helper::start(&self.program), Ok)
    }

    /// The container `id`.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        let found = lock(&self.table).get(id).cloned().flatten();
        found.ok_or_else(|| Error::NoContainer { id: id.to_owned() })
    }

    /// The first process of container `id`, which must not have ended: its namespaces are to be entered.
    pub fn init_of(&self, id: &str) -> Result<Pid, Error> {
        let container = self.get(id)?;
        if *lock(&container.state) == State::Stopped {
            return Err(Error::ProcessFinished);
        }
        Ok(container.init.raw_pid())
    }

    /// A process of a container; its init where `exec_id` is empty.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, Error> {
        let container = self.get(id)?;
        if exec_id.is_empty() {
            return Ok(Arc::clone(&container.init));
        }
        let found = lock(&container.execs).get(exec_id).cloned().flatten();
        found.ok_or_else(|| Error::NoProcess {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        })
    }

    /// Waits for a process to end. An exec is forgotten then.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<(Exit, u64), Error> {
        let container = self.get(id)?;
        let exit = self.process(id, exec_id)?.wait().await;
        lock(&container.execs).remove(exec_id);
        Ok((exit, *container.oom_kills.borrow()))
    }

    /// Removes a container that does not run.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let container = self.get(id)?;
        let before = container.enter(Event::Delete, "delete")?;
        if before == State::Created {
            container.init.kill(libc::SIGKILL)?;
        }
        let gone = async {
            container.init.wait().await;
            container.cgroup.remove().await
        };
        let late = |_| {
            io::Error::other(format!(
                "its processes have not ended {} s after their kill",
                END.as_secs()
            ))
        };
        tokio::time::timeout(END, gone)
            .await
            .map_err(late)
            .map_err(Error::system(format!("deleting {id:?}")))??;
        remove_directories(id)?;
        lock(&self.table).remove(id);
        Ok(())
    }
}

fn remove_directories(id: &str) -> Result<(), Error> {
    for parent in [STATE, BUNDLES] {
        let directory = Path::new(parent).join(id);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("removing", directory)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Container {
    /// Applies an event to the state; gives the state before.
    fn enter(&self, event: Event, request: &'static str) -> Result<State, Error> {
        let mut state = lock(&self.state);
        let before = *state;
        let after = before.after(event);
        *state = after.ok_or_else(|| Error::WrongState {
            id: self.id.clone(),
            state: before.name(),
            request,
        })?;
        Ok(before)
    }

    /// Opens the gate at which init waits.
    pub fn start(&self) -> Result<(), Error> {
        self.enter(Event::Start, "start")?;
        let gate = Path::new(STATE).join(&self.id).join("notify.sock");
        // Any byte will do, and the end of the stream.
        UnixStream::connect(&gate)
            .and_then(|mut stream| stream.write_all(b"go"))
            .map_err(Error::file("opening the gate", gate))
    }

    /// Sends `signal` to every process in the container.
    pub fn kill_all(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.pids()? {
            // A process that has ended since has got what was wanted.
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.map_or(Ok(()), |pid| signal::send(pid, signal))
                .map_err(Error::system("sending a signal"))?;
        }
        Ok(())
    }

    /// Stops all its processes until they are resumed.
    pub async fn pause(self: &Arc<Self>) -> Result<(), Error> {
        // A caller that goes away leaves no half of it.
        let this = Arc::clone(self);
        let paused = tokio::spawn(async move { this.freeze().await });
        paused.await.map_err(|error| Error::Runtime(error.to_string()))?
    }

    async fn freeze(&self) -> Result<(), Error> {
        let _none_starts = self.freezing.write().await;
        self.enter(Event::Pause, "pause")?;
        let late = |_| {
            let seconds = FROZEN.as_secs();
            Err(Error::Runtime(format!(
                "its processes do not stand still within {seconds} s"
            )))
        };
        let frozen = tokio::time::timeout(FROZEN, self.cgroup.freeze(true)).await;
        let frozen = frozen.unwrap_or_else(late);
        if frozen.is_err() {
            // What is told is why; it may have ended meanwhile, else it goes on as before.
            let _ = self.cgroup.begin_freeze(false);
            let _ = self.enter(Event::Resume, "resume");
        }
        frozen
    }

    /// Lets its processes go on.
    pub async fn resume(&self) -> Result<(), Error> {
        self.enter(Event::Resume, "resume")?;
        self.cgroup.freeze(false).await
    }

    /// Changes the limits that `resources` (JSON) names; the others stay.
    pub fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let state = *lock(&self.state);
        if !matches!(state, State::Created | State::Running | State::Paused) {
            return Err(Error::WrongState {
                id: self.id.clone(),
                state: state.name(),
                request: "update",
            });
        }
        self.cgroup.apply(&spec::parse_update(resources)?)
    }

    /// What of its spec has no effect in this guest: each a path and the reason.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// What the kernel counts of it.
    pub fn stats(&self) -> Result<HashMap<String, Vec<u8>>, Error> {
        self.cgroup.stats()
    }

    /// Counts its processes that are killed for want of memory, from now on.
    fn start_counting(self: &Arc<Self>) {
        let whole = Arc::downgrade(self);
        let Ok(Some(mut events)) = self.cgroup.memory_events() else {
            return;
        };
        let counting = tokio::spawn(async move {
            while let Ok(kills) = events.changed().await {
                let Some(container) = whole.upgrade() else { return };
                container.oom_kills.send_replace(kills);
            }
        });
        *lock(&self.counting) = Some(counting.abort_handle());
    }

    /// Counts now: before an end is told that may be one of them.
    fn count_kills(&self) {
        if let Ok(Some(kills)) = self.cgroup.oom_kills() {
            self.oom_kills.send_replace(kills);
        }
    }

    /// Waits until more than `known` of its processes were killed for want of memory.
    pub async fn wait_oom(self: Arc<Self>, known: u64) -> Result<u64, Error> {
        let mut kills = self.oom_kills.subscribe();
        let id = self.id.clone();
        // The container is not kept: its deletion is an answer too.
        drop(self);
        match kills.wait_for(|kills| *kills > known).await {
            Ok(kills) => Ok(*kills),
            Err(_) => Err(Error::NoContainer { id }),
        }
    }

    /// All its processes.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        self.cgroup.pids()
    }

    /// Init's pid.
    pub fn init(&self) -> u32 {
        self.init.pid()
    }

    /// The reaper's event, of init.
    fn ended(&self, exit: Exit) {
        let mut state = lock(&self.state);
        if let Some(after) = state.after(Event::Exit) {
            *state = after;
        }
        drop(state);
        self.count_kills();
        self.init.ended(exit);
        // What init leaves is the container's still: it does not outlive init.
        if let Err(error) = self.cgroup.kill() {
            crate::report::to_console(&format!("after the end of {}: {error}", self.id));
        }
    }
}

/// The number of a signal.
pub fn check_signal(signal: u32) -> Result<i32, Error> {
    i32::try_from(signal)
        .ok()
        .filter(|signal| (0..=libc::SIGRTMAX()).contains(signal))
        .ok_or_else(|| Error::BadRequest {
            what: format!("{signal} is no signal"),
        })
}
