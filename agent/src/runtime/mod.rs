//! Creates a container's init: a fork of the agent, in the container's cgroup, that makes its namespaces and
//! its root file system, becomes the user of the spec, and waits for the start notification before it
//! executes the command.
//!
//! ```text
//! agent ── clone3, into the container's cgroup and pid namespace ──▶ child
//! agent ◀── Terminal and its master, if requested ────────────────── child   one SOCK_SEQPACKET socket
//! agent ◀── Ready | Command | BadSpec | Failed ───────────────────── child
//! agent ── one byte, the start notification ───────────────────────▶ child, which calls execve
//! ```
//! A child with a user or time namespace, or with the pid namespace of others, is forked by a [`forerunner`].

mod child;
mod copy_up;
mod destinations;
mod dev;
mod forerunner;
mod hooks;
mod mount_attributes;
mod mounts;
mod namespaces;
mod options;
mod paths;
mod restrictions;
mod root;
mod tree;
mod workdir;

pub use restrictions::Restriction;

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};

use nacre_protocol::control::{self, Channel};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use self::namespaces::Namespaces;
use crate::async_fd;
use crate::cgroup::Cgroup;
use crate::child::{Filter, limits};
use crate::error::Error;
use crate::fork;
use crate::spec::{MountPropagation, UtsNames, has_namespace};

/// The UTS namespace of the agent.
const OWN_UTS: &str = "/proc/self/ns/uts";

/// What a child needs to become a container's init.
pub struct InitRequest<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The container's spec, whose namespaces have paths in the guest.
    pub spec: &'a Spec,
    /// The container's seccomp filter.
    pub filter: Option<&'a Filter>,
    /// The container's cgroup, which exists.
    pub cgroup: &'a Cgroup,
    /// HOME must be looked up in the container's /etc/passwd.
    pub find_home: bool,
    /// What the host's mounts do not allow.
    pub restrictions: &'a [Restriction],
    /// Propagation types to set once the container's mounts exist.
    pub propagation: &'a [MountPropagation],
}

/// An init that is being set up.
pub struct StartedInit {
    /// Its pid in the guest's pid namespace.
    pub pid: Pid,
    report: AsyncFd<Channel>,
}

/// The init of a new container, which waits for the start notification.
pub struct WaitingInit {
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Sends the notification.
    pub gate: Gate,
}

/// The socket of the start notification. The init exits if it is closed without one.
pub struct Gate(Channel);

/// A message from the child.
#[derive(Debug, Serialize, Deserialize)]
enum FromChild {
    /// The terminal exists; its master comes with this message.
    Terminal,
    /// The init waits for the start notification.
    Ready,
    /// The command cannot be executed; the text is runc's.
    Command(String),
    /// A field of the spec cannot be honoured.
    BadSpec { field: String, reason: String },
    /// A step failed.
    Failed(String),
}

/// Forks the init of `request`. `stdio` becomes its standard streams unless it has a terminal. `watch` must
/// let the reaper watch the pid that it is called with: before that the init's exit can't be missed.
pub async fn start(
    request: &InitRequest<'_>,
    stdio: &[OwnedFd; 3],
    watch: impl FnOnce(Pid),
) -> Result<StartedInit, Error> {
    let namespaces = Namespaces::open(request.spec)?;
    let (report, child_end) = async_fd::channel()?;
    let child_end = Channel::new(child_end);
    let directory = request.cgroup.open()?;
    let step = "forking a container's init";
    if namespaces.need_forerunner() {
        let (forked, forerunner) = async_fd::channel()?;
        let forerunner = Channel::new(forerunner);
        fork::into_cgroup(directory.as_fd(), || {
            forerunner::run(request, &namespaces, stdio, &forerunner, &child_end)
        })
        .map_err(Error::system(step))?;
        drop((forerunner, child_end));
        let pid = forerunner::pid(&forked).await?;
        watch(pid);
        // The forerunner exits, and the init becomes a child of the agent.
        drop(forked);
        set_oom_score(pid, request.spec)?;
        if namespaces.makes(LinuxNamespaceType::User) {
            namespaces::write_id_maps(request.spec, pid)?;
        }
        set_limits(pid, request.spec)?;
        notify(report.get_ref())?;
        return Ok(StartedInit { pid, report });
    }
    let pid = fork::into_cgroup_and_namespaces(directory.as_fd(), namespaces.of_fork(), || {
        child::run(request, &namespaces, stdio, &child_end)
    })
    .map_err(Error::system(step))?;
    watch(pid);
    set_oom_score(pid, request.spec)?;
    Ok(StartedInit { pid, report })
}

/// By the agent, because the process could otherwise lower the value that it has inherited.
fn set_oom_score(pid: Pid, spec: &Spec) -> Result<(), Error> {
    let value = spec.process().as_ref().and_then(Process::oom_score_adj);
    let file = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    match fs::write(&file, value.unwrap_or(0).to_string()) {
        // The child has exited; its report says why.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) || !std::path::Path::new(&file).exists() => {
            Ok(())
        }
        written => written.map_err(Error::file("writing", file)),
    }
}

/// Lets the child at the other end of `channel` go on.
fn notify(channel: &Channel) -> Result<(), Error> {
    rustix::io::write(channel, &[0])
        .map(drop)
        .map_err(Error::system("notifying a container's init"))
}

impl StartedInit {
    /// Waits until the init is complete.
    pub async fn ready(self) -> Result<WaitingInit, Error> {
        let mut terminal = None;
        loop {
            match receive::<FromChild>(&self.report).await {
                Ok((FromChild::Terminal, fds)) => terminal = fds.into_iter().next(),
                Ok((FromChild::Ready, _)) => break,
                Ok((FromChild::Command(text), _)) => return Err(Error::Command(text)),
                Ok((FromChild::BadSpec { field, reason }, _)) => return Err(Error::bad_spec(field, reason)),
                Ok((FromChild::Failed(text), _)) => return Err(Error::Runtime(text)),
                Err(error) => return Err(Error::InitDied(error.to_string())),
            }
        }
        Ok(WaitingInit {
            terminal,
            gate: Gate(self.report.into_inner()),
        })
    }
}

impl Gate {
    /// Sends the notification.
    pub fn open(self) -> Result<(), Error> {
        notify(&self.0)
    }
}

async fn receive<T: DeserializeOwned>(
    channel: &AsyncFd<Channel>,
) -> Result<(T, Vec<OwnedFd>), control::Error> {
    loop {
        let mut ready = channel.readable().await.map_err(|_| control::Error::Closed)?;
        match channel.get_ref().receive::<T>() {
            Err(control::Error::Socket(Errno::EAGAIN)) => ready.clear_ready(),
            result => return result,
        }
    }
}

/// Sets the resource limits of `spec` for the init in a user namespace, which has no privilege to raise one.
fn set_limits(pid: Pid, spec: &Spec) -> Result<(), Error> {
    let process = spec.process().as_ref();
    let limits = process.and_then(|process| process.rlimits().as_ref());
    for limit in limits.into_iter().flatten() {
        let step = format!("setting rlimit {}", limit.typ());
        limits::set(Some(pid), limit).map_err(Error::system(step))?;
    }
    Ok(())
}

/// Sets host and domain name in the UTS namespace that the container shares: that of process `pid`, or the
/// agent's.
pub fn set_uts_names(pid: Pid, spec: &Spec, names: &UtsNames) -> Result<(), Error> {
    if *names == UtsNames::default() {
        return Ok(());
    }
    let step = "setting a host name";
    let enter = |namespace: &File| {
        let kind = LinkNameSpaceType::HostNameAndNISDomainName;
        move_into_link_name_space(namespace.as_fd(), Some(kind)).map_err(Error::system(step))
    };
    let set = || {
        let host = names.host.as_ref();
        host.map_or(Ok(()), |name| rustix::system::sethostname(name.as_bytes()))?;
        let domain = names.domain.as_ref();
        domain.map_or(Ok(()), |name| rustix::system::setdomainname(name.as_bytes()))
    };
    if !has_namespace(spec, LinuxNamespaceType::Uts) {
        return set().map_err(Error::system(step));
    }
    let own = File::open(OWN_UTS).map_err(Error::file("opening", OWN_UTS))?;
    let path = format!("/proc/{}/ns/uts", pid.as_raw_nonzero());
    enter(&File::open(&path).map_err(Error::file("opening", path))?)?;
    let done = set().map_err(Error::system(step));
    enter(&own)?;
    done
}
