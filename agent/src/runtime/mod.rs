//! Containers by libcontainer, run in a process of its own: the agent's program again, single-threaded, which forks
//! and changes namespaces as it likes. One helper makes one container; the next one waits, started, for the next.
//!
//! ```text
//! agent ── Create + stdio fds ──▶ helper        one SOCK_SEQPACKET socket, the helper's standard input
//! agent ◀── Event … ───────────── helper        errors that libcontainer logs, from each of its processes
//! agent ◀── Created | Failed ──── helper
//! agent ── closes the socket ───▶ helper        init has an owner: the helper may end, and init becomes the agent's
//! ```

pub mod child;
mod console;
mod events;
mod executor;
pub mod ids;
mod loopback;
mod mounts;

pub use loopback::bring_up as bring_loopback_up;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nacre_protocol::control::{self, Channel};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::container::{Later, Names};
use crate::error::Error;
use crate::terminal::Terminal;

/// `argv[0]` of a helper.
pub const HELPER: &str = "nacre-helper";
/// File of a bundle with the filter of system calls (`linux.seccomp`, JSON) that is loaded last before the command.
pub const LATE_FILTER: &str = "seccomp.json";
/// Most lines of libcontainer's log kept for an error.
const MAX_EVENTS: usize = 4;

/// A container to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    /// Its id.
    pub id: String,
    /// Directory with its `config.json`.
    pub bundle: PathBuf,
    /// Directory of libcontainer's state of all containers.
    pub state: PathBuf,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
    /// The device program of its cgroup.
    pub devices: Vec<u64>,
    /// Its first process has a terminal.
    pub terminal: Option<Terminal>,
    /// HOME is to be found in the container's /etc/passwd.
    pub find_home: bool,
    /// Its network is new: the loopback device is to be brought up.
    pub new_network: bool,
    /// Names for the UTS namespace of another container.
    pub names: Names,
    /// What libcontainer does not do with its mounts.
    pub mounts: Vec<Later>,
}

/// From the helper and from the processes that libcontainer forks off it.
#[derive(Debug, Serialize, Deserialize)]
enum FromHelper {
    /// libcontainer logged an error.
    Event(String),
    /// The command can't be executed; follows before `Failed`.
    Command(String),
    /// Init waits at its gate; the master of its terminal comes with it, where it has one.
    Created { pid: i32 },
    /// There is no container.
    Failed(String),
}

/// A helper that waits for its container.
pub struct Helper(AsyncFd<Channel>);

/// A container just made, whose init is still the helper's child: it becomes the agent's when this is dropped.
pub struct Fresh {
    /// Init.
    pub pid: Pid,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    _helper: Helper,
}

impl Helper {
    /// Starts a helper; `program` is the agent's own.
    pub fn start(program: &std::path::Path) -> Result<Self, Error> {
        let (channel, theirs) = async_fd::channel()?;
        #[allow(clippy::zombie_processes, reason = "the reaper waits for every child")]
        let child = Command::new(program)
            .arg0(HELPER)
            .env_clear()
            .env("PATH", ids::DIRECTORY)
            .stdin(Stdio::from(theirs))
            .spawn();
        child.map_err(Error::file("starting", program))?;
        Ok(Self(channel))
    }

    /// Makes a container whose init has `stdio` as its standard streams.
    pub async fn create(self, create: &Create, stdio: [OwnedFd; 3]) -> Result<Fresh, Error> {
        let fds = stdio.each_ref().map(|fd| fd.as_raw_fd());
        self.0
            .get_ref()
            .send(create, &fds)
            .map_err(|error| Error::HelperDied(error.to_string()))?;
        drop(stdio);
        let mut events = Vec::new();
        let mut command = None;
        loop {
            match self.receive().await {
                Ok((FromHelper::Created { pid }, fds)) => {
                    let pid =
                        Pid::from_raw(pid).ok_or_else(|| Error::Runtime("init has no pid".to_owned()))?;
                    return Ok(Fresh {
                        pid,
                        terminal: fds.into_iter().next(),
                        _helper: self,
                    });
                }
                Ok((FromHelper::Event(text), _)) if events.len() < MAX_EVENTS => events.push(text),
                Ok((FromHelper::Event(_), _)) => {}
                Ok((FromHelper::Command(text), _)) => command = Some(text),
                Ok((FromHelper::Failed(_), _)) if command.is_some() => {
                    return Err(Error::Command(command.unwrap_or_default()));
                }
                Ok((FromHelper::Failed(text), _)) => return Err(Error::Runtime(with_events(text, &events))),
                Err(error) => return Err(Error::HelperDied(with_events(error.to_string(), &events))),
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

fn with_events(text: String, events: &[String]) -> String {
    if events.is_empty() {
        text
    } else {
        format!("{text} ({})", events.join("; "))
    }
}
