//! An exec process: a fork of the agent that enters the container's namespaces by init's pidfd, becomes the
//! user of the process object and executes the command. There is no helper process and, until the child is in
//! the container, no access to a shared file system, because probes and shells wait for this.
//!
//! ```text
//! agent ── clone3, into the container's cgroup and pid namespace ──▶ child
//! agent ◀── Terminal and its master, if requested ────────────────── child   one SOCK_SEQPACKET socket
//! agent ◀── Command | Failed, or the socket closed by execve ─────── child
//! ```

mod child;

use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nacre_protocol::control::{self, Channel};
use nacre_protocol::proc_cgroup::cgroup2_path;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::cgroup::{self, Cgroup};
use crate::child::Filter;
use crate::error::Error;
use crate::fork;
use crate::spec::has_namespace;

/// What the child needs to become an exec process.
pub struct ExecRequest<'a> {
    /// The container's id.
    pub container_id: &'a str,
    /// The process object, with the container's values for the properties that the request left out.
    pub process: &'a Process,
    /// HOME must be looked up in the container's /etc/passwd.
    pub find_home: bool,
    /// The container's spec.
    pub spec: &'a Spec,
    /// The container's seccomp filter.
    pub filter: Option<&'a Filter>,
    /// The container's init: its pid, and a pidfd of it.
    pub init: (Pid, BorrowedFd<'a>),
    /// The container's cgroup.
    pub cgroup: &'a Cgroup,
}

/// A child that has not executed its command yet.
pub struct StartedChild {
    /// The child's pid in the guest's pid namespace.
    pub pid: Pid,
    report: AsyncFd<Channel>,
}

/// A message from the child.
#[derive(Debug, Serialize, Deserialize)]
enum FromChild {
    /// The terminal exists; its master comes with this message.
    Terminal,
    /// The command cannot be executed; the text is runc's.
    Command(String),
    /// A step before the command failed.
    Failed(String),
}

/// Forks the child. `stdio` becomes its standard streams unless it has a terminal. The caller must let the
/// reaper watch the child before the event loop runs again.
pub fn start(request: &ExecRequest<'_>, stdio: &[OwnedFd; 3]) -> Result<StartedChild, Error> {
    let (report, child_end) = async_fd::channel()?;
    let child_end = Channel::new(child_end);
    let pid = fork_into_container(request, || child::run(request, stdio, &child_end))?;
    Ok(StartedChild { pid, report })
}

/// Forks into the container's pid namespace and cgroup.
fn fork_into_container(request: &ExecRequest<'_>, child: impl Fn() -> i32) -> Result<Pid, Error> {
    let own = File::open("/proc/self/ns/pid").map_err(Error::file("opening", "/proc/self/ns/pid"))?;
    let has_pid_namespace = has_namespace(request.spec, LinuxNamespaceType::Pid);
    if has_pid_namespace {
        // setns(2) of a pid namespace applies to children that are forked afterwards, not to the caller.
        move_into_thread_name_spaces(request.init.1, ThreadNameSpaceType::PROCESS_ID).map_err(fork_error)?;
    }
    let forked = request.cgroup.open().and_then(|directory| {
        match fork::into_cgroup(directory.as_fd(), &child) {
            // The container delegates to cgroups that it made below this one, which then holds no process
            // itself.
            Err(Errno::BUSY) => {
                let directory = cgroup::open_directory(&cgroup_of(request.init.0)?)?;
                fork::into_cgroup(directory.as_fd(), &child).map_err(fork_error)
            }
            result => result.map_err(fork_error),
        }
    });
    if has_pid_namespace {
        move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(Error::system("leaving the container's pid namespace"))?;
    }
    forked
}

/// ESRCH: init has exited. ENOMEM: its pid namespace is shutting down. ENOENT: its cgroup was removed.
fn fork_error(error: Errno) -> Error {
    match error {
        Errno::SRCH | Errno::NOMEM | Errno::NOENT => Error::ProcessFinished,
        error => Error::system("forking a process into the container")(error),
    }
}

fn cgroup_of(pid: Pid) -> Result<PathBuf, Error> {
    let file = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    let text = fs::read_to_string(&file).map_err(Error::file("reading", &file))?;
    Ok(Path::new(cgroup::ROOT).join(cgroup2_path(&text).unwrap_or_default()))
}

impl StartedChild {
    /// Waits until the command is executed; returns the master of its terminal, if it has one.
    pub async fn executed(self) -> Result<Option<OwnedFd>, Error> {
        let mut terminal = None;
        loop {
            let mut ready = self.report.readable().await.map_err(Error::system(
                "waiting for an exec process to execute its command",
            ))?;
            match self.report.get_ref().receive::<FromChild>() {
                Ok((FromChild::Terminal, fds)) => terminal = fds.into_iter().next(),
                Ok((FromChild::Command(text), _)) => return Err(Error::Command(text)),
                Ok((FromChild::Failed(text), _)) => return Err(Error::Runtime(text)),
                // The child's end is close-on-exec.
                Err(control::Error::Closed) => return Ok(terminal),
                Err(control::Error::Socket(nix::errno::Errno::EAGAIN)) => ready.clear_ready(),
                Err(error) => return Err(Error::Runtime(error.to_string())),
            }
        }
    }
}
