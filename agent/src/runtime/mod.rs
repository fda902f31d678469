//! Creates containers with libcontainer, in a helper process: the agent's own program again, single-threaded,
//! which may fork and change namespaces. A helper creates one container and exits; the agent starts the next
//! helper in advance.
//!
//! ```text
//! agent ── Create + stdio fds ──▶ helper        one SOCK_SEQPACKET socket, the helper's standard input
//! agent ◀── LoggedError … ─────── helper        errors that libcontainer logs, from each of its processes
//! agent ◀── Created | Failed ──── helper
//! agent ── closes the socket ───▶ helper        the reaper watches init: the helper exits, init is reparented
//! ```

pub mod child;
mod console;
mod destinations;
mod error_log;
mod executor;
pub mod late;
mod loopback;
pub mod newidmap;
mod propagation;
mod restrictions;
mod workdir;

pub use loopback::bring_up as bring_loopback_up;
pub use restrictions::Restriction;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nacre_protocol::control::{self, Channel};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::error::Error;
use crate::spec::{MountPropagation, UtsNames};
use crate::terminal::Terminal;

/// `argv[0]` of a helper process.
pub const HELPER: &str = "nacre-helper";
/// The file in a bundle with the seccomp filter (`linux.seccomp`, JSON) that is loaded right before execve.
pub const LATE_FILTER: &str = "seccomp.json";
/// Most errors from libcontainer's log that an error message repeats.
const MAX_LOGGED_ERRORS: usize = 4;

/// The request to create a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    /// The container's id.
    pub id: String,
    /// The directory with `config.json`.
    pub bundle: PathBuf,
    /// The directory of libcontainer's state for all containers.
    pub state: PathBuf,
    /// The directory of the container's cgroup.
    pub cgroup: PathBuf,
    /// The cgroup's device program, as BPF instructions; empty if all devices are allowed.
    pub devices: Vec<u64>,
    /// The terminal of init, if it has one.
    pub terminal: Option<Terminal>,
    /// HOME must be looked up in the container's /etc/passwd.
    pub find_home: bool,
    /// The container has a new network namespace, whose loopback device must be brought up.
    pub new_network: bool,
    /// What the host's mounts do not allow.
    pub restrictions: Vec<Restriction>,
    /// Names to set in a UTS namespace that the container shares.
    pub uts_names: UtsNames,
    /// Propagation types to set once the container's mounts exist.
    pub propagation: Vec<MountPropagation>,
}

/// A message from the helper, or from a process that libcontainer forks in it.
#[derive(Debug, Serialize, Deserialize)]
enum FromHelper {
    /// libcontainer logged an error.
    LoggedError(String),
    /// The command cannot be executed; sent before `Failed`.
    Command(String),
    /// Init waits for the start notification. The master of its terminal comes with this message, if it has
    /// one.
    Created { pid: i32 },
    /// A field of the spec cannot be honoured; there is no container.
    BadSpec { field: String, reason: String },
    /// The container could not be created.
    Failed(String),
}

/// A helper that waits for a [`Create`] request.
pub struct Helper(AsyncFd<Channel>);

/// The init of a new container, still a child of the helper. When this is dropped the helper exits, and init
/// becomes a child of the agent.
pub struct CreatedInit {
    /// Init's pid.
    pub pid: Pid,
    /// The master of init's terminal.
    pub terminal: Option<OwnedFd>,
    _helper: Helper,
}

impl Helper {
    /// Starts a helper; `program` is the agent's own program.
    pub fn start(program: &Path) -> Result<Self, Error> {
        let (channel, helper_end) = async_fd::channel()?;
        #[allow(clippy::zombie_processes, reason = "the reaper waits for every child")]
        let child = Command::new(program)
            .arg0(HELPER)
            .env_clear()
            .env("PATH", newidmap::DIRECTORY)
            .stdin(Stdio::from(helper_end))
            .spawn();
        child.map_err(Error::file("starting", program))?;
        Ok(Self(channel))
    }

    /// Creates a container whose init has `stdio` as its standard streams.
    pub async fn create(self, create: &Create, stdio: [OwnedFd; 3]) -> Result<CreatedInit, Error> {
        let fds = stdio.each_ref().map(|fd| fd.as_raw_fd());
        self.0
            .get_ref()
            .send(create, &fds)
            .map_err(|error| Error::HelperDied(error.to_string()))?;
        drop(stdio);
        let mut logged = Vec::new();
        let mut command_error = None;
        loop {
            match self.receive().await {
                Ok((FromHelper::Created { pid }, fds)) => {
                    let pid = Pid::from_raw(pid)
                        .ok_or_else(|| Error::Runtime("the container helper sent pid 0".to_owned()))?;
                    return Ok(CreatedInit {
                        pid,
                        terminal: fds.into_iter().next(),
                        _helper: self,
                    });
                }
                Ok((FromHelper::LoggedError(text), _)) => {
                    if logged.len() < MAX_LOGGED_ERRORS {
                        logged.push(text);
                    }
                }
                Ok((FromHelper::Command(text), _)) => command_error = Some(text),
                Ok((FromHelper::BadSpec { field, reason }, _)) => {
                    return Err(Error::bad_spec(field, reason));
                }
                Ok((FromHelper::Failed(text), _)) => {
                    return Err(match command_error {
                        Some(text) => Error::Command(text),
                        None => Error::Runtime(with_logged(text, &logged)),
                    });
                }
                Err(error) => return Err(Error::HelperDied(with_logged(error.to_string(), &logged))),
            }
        }
    }

    async fn receive(&self) -> Result<(FromHelper, Vec<OwnedFd>), control::Error> {
        loop {
            let mut guard = self.0.readable().await.map_err(|_| control::Error::Closed)?;
            match self.0.get_ref().receive::<FromHelper>() {
                Err(control::Error::Socket(nix::errno::Errno::EAGAIN)) => guard.clear_ready(),
                result => return result,
            }
        }
    }
}

fn with_logged(text: String, logged: &[String]) -> String {
    if logged.is_empty() {
        text
    } else {
        format!("{text} ({})", logged.join("; "))
    }
}
