//! One more process in a running container: a fork of the agent that enters the container's namespaces by its init's
//! pidfd, becomes the spec's user, and executes the command. Nothing is started for it and nothing asked of the file
//! system, since this is what probes and shells wait for.
//!
//! ```text
//! agent ── clone3, into the container's cgroup and pid namespace ──▶ child
//! agent ◀── Terminal + its master, where one is wanted ───────────── child   one SOCK_SEQPACKET socket
//! agent ◀── Command | Failed, or the socket's end by execve ──────── child
//! ```

mod child;
mod fork;

use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nacre_protocol::control::{self, Channel};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::cgroup::{self, Cgroup};
use crate::container::has_namespace;
use crate::error::Error;

/// What a process is to become.
pub struct Job<'a> {
    /// The process, completed by what its container has where it says nothing.
    pub process: &'a Process,
    /// HOME is to be found in the container's /etc/passwd.
    pub find_home: bool,
    /// The container's spec.
    pub spec: &'a Spec,
    /// Its first process and that process's pidfd.
    pub init: (Pid, BorrowedFd<'a>),
    pub cgroup: &'a Cgroup,
}

/// A process that is becoming its command.
pub struct Started {
    pub pid: Pid,
    report: AsyncFd<Channel>,
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
enum FromChild {
    /// The terminal's master comes with it.
    Terminal,
    /// The command can't be executed, in runc's words.
    Command(String),
    /// It could not be set up.
    Failed(String),
}

/// Forks a process for `job`, whose standard streams are `stdio` unless it has a terminal. The caller has the reaper
/// watch it before anything else happens in the event loop.
pub fn start(job: &Job<'_>, stdio: &[OwnedFd; 3]) -> Result<Started, Error> {
    let (report, theirs) = async_fd::channel()?;
    let theirs = Channel::new(theirs);
    let pid = fork_into(job, || child::run(job, stdio, &theirs))?;
    Ok(Started { pid, report })
}

/// Forks into the container's pid namespace and cgroup.
fn fork_into(job: &Job<'_>, child: impl Fn() -> i32) -> Result<Pid, Error> {
    let own = File::open("/proc/self/ns/pid").map_err(Error::file("opening", "/proc/self/ns/pid"))?;
    let enters = has_namespace(job.spec, LinuxNamespaceType::Pid);
    if enters {
        move_into_thread_name_spaces(job.init.1, ThreadNameSpaceType::PROCESS_ID).map_err(gone)?;
    }
    let forked = open_cgroup(job.cgroup.directory()).and_then(|directory| {
        match fork::into_cgroup(directory.as_fd(), &child) {
            // Its processes have moved into cgroups that they made below.
            Err(Errno::BUSY) => {
                let directory = open_cgroup(&cgroup_of(job.init.0)?)?;
                fork::into_cgroup(directory.as_fd(), &child).map_err(gone)
            }
            result => result.map_err(gone),
        }
    });
    if enters {
        // Only what is forked from now on is concerned.
        move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(Error::system("leaving the container's pid namespace"))?;
    }
    forked
}

/// ESRCH: init has ended; ENOMEM: so has its pid namespace.
fn gone(error: Errno) -> Error {
    match error {
        Errno::SRCH | Errno::NOMEM | Errno::NOENT => Error::ProcessFinished,
        error => Error::system("starting a process in the container")(error),
    }
}

fn open_cgroup(directory: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, rustix::fs::Mode::empty()).map_err(Error::file("opening", directory))
}

fn cgroup_of(pid: Pid) -> Result<PathBuf, Error> {
    let file = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    let text = fs::read_to_string(&file).map_err(Error::file("reading", &file))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    Ok(Path::new(cgroup::ROOT).join(path))
}

impl Started {
    /// Waits until the command is executed; gives the master of its terminal, where it has one.
    pub async fn executed(self) -> Result<Option<OwnedFd>, Error> {
        let mut terminal = None;
        loop {
            let mut ready = self
                .report
                .readable()
                .await
                .map_err(Error::system("waiting for a process"))?;
            match self.report.get_ref().receive::<FromChild>() {
                Ok((FromChild::Terminal, fds)) => terminal = fds.into_iter().next(),
                Ok((FromChild::Command(text), _)) => return Err(Error::Command(text)),
                Ok((FromChild::Failed(text), _)) => return Err(Error::Runtime(text)),
                Err(control::Error::Closed) => return Ok(terminal),
                Err(control::Error::Socket(nix::errno::Errno::EAGAIN)) => ready.clear_ready(),
                Err(error) => return Err(Error::Runtime(error.to_string())),
            }
        }
    }
}
