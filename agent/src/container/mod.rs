//! The containers of a guest: the table of them, and each one's life from creation to removal. The service calls it;
//! it uses the helper, the reaper, the cgroup and the standard streams, and knows nothing of RPC.
//!
//! Lock order: the table, then a container's state; neither is held while anything is awaited.

mod create;
mod signal;
mod spec;
mod state;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::watch;

use self::state::{Event, State};
use crate::cgroup::Cgroup;
use crate::dial::Dialer;
use crate::error::Error;
use crate::reaper::{Exit, Reaper};
use crate::runtime::Helper;
use crate::stdio::Input;

/// libcontainer's state, one directory a container. Short: a socket's path in it has 107 bytes at most.
const STATE: &str = "/run/nacre/c";
/// Bundles, one directory a container.
const BUNDLES: &str = "/run/nacre/b";
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
    init: Pid,
    cgroup: Cgroup,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
    input: Mutex<Option<Input>>,
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

    /// The container whose process `exec_id` is; only init processes exist, with an empty one.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Container>, Error> {
        let container = self.get(id)?;
        if exec_id.is_empty() {
            Ok(container)
        } else {
            Err(Error::NoProcess {
                id: id.to_owned(),
                exec_id: exec_id.to_owned(),
            })
        }
    }

    /// Removes a container that does not run.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let container = self.get(id)?;
        let before = container.enter(Event::Delete, "delete")?;
        if before == State::Created {
            container.send(libc::SIGKILL)?;
        }
        let gone = async {
            container.wait().await;
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

    /// Waits until init has ended.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            // The sender is in `self`: this ends by an exit only.
            let _ = exit.changed().await;
        }
    }

    /// Sends `signal` to init, or to every process in the container.
    pub fn kill(&self, signal: u32, all: bool) -> Result<(), Error> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|signal| (0..=libc::SIGRTMAX()).contains(signal))
            .ok_or_else(|| Error::BadRequest {
                what: format!("{signal} is no signal"),
            })?;
        match (all, signal) {
            (true, libc::SIGKILL) => self.cgroup.kill(),
            (true, _) => {
                for pid in self.cgroup.pids()? {
                    // A process that has ended since has got what was wanted.
                    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                    pid.map_or(Ok(()), |pid| signal::send(pid, signal))
                        .map_err(Error::system("sending a signal"))?;
                }
                Ok(())
            }
            (false, _) => self.send(signal),
        }
    }

    /// Sends `signal` to init. Its pid is its own until the reaper has told of its end.
    fn send(&self, signal: i32) -> Result<(), Error> {
        if self.exit.borrow().is_some() {
            return Err(Error::ProcessFinished);
        }
        signal::send(self.init, signal).map_err(Error::system("sending a signal"))
    }

    /// No more standard input after what has arrived.
    pub fn close_stdin(&self) {
        if let Some(input) = &*lock(&self.input) {
            input.close();
        }
    }

    /// All its processes.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        self.cgroup.pids()
    }

    /// Init's pid.
    pub fn init(&self) -> u32 {
        self.init.as_raw_nonzero().get().unsigned_abs()
    }

    /// The reaper's event.
    fn ended(&self, exit: Exit) {
        let mut state = lock(&self.state);
        if let Some(after) = state.after(Event::Exit) {
            *state = after;
        }
        drop(state);
        self.exit.send_replace(Some(exit));
        if let Some(input) = &*lock(&self.input) {
            input.abort();
        }
        // What init leaves is the container's still: it does not outlive init.
        if let Err(error) = self.cgroup.kill() {
            crate::report::say(&format!("after the end of {}: {error}", self.id));
        }
    }
}
