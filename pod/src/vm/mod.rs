//! A pod's VMM process: its start, and its end. The sandbox holds a [`Vm`] to control it and gets [`Event`]s
//! from its [`VmmMonitor`]. Speaks `nacre_protocol::control`; knows nothing of containers.

mod affinity;
mod boot;
mod disk_file;
mod disks;
mod end;
mod memory;
mod monitor;
mod requests;
mod stderr_tail;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::console;
use nacre_protocol::control::{Answer, Attachments, Channel, Request, socket_pair};
use nacre_protocol::stream_table::StreamTable;
use nacre_protocol::text::printable;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::cgroup::{self, Cgroup};
use crate::guest_text::MAX_NAME;
use crate::network::Nic;
use crate::pod_spec::PodSpec;
use crate::sys;
use nacre_protocol::config::Config;

pub use boot::Boot;
use boot::{BootFiles, Files, net_device, open};
pub use disks::Disks;
pub use end::End;
pub use memory::MemoryControl;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use monitor::received;
pub use monitor::{Event, VmmMonitor};
pub use requests::RequestError;
use requests::Requests;
use stderr_tail::StderrTail;

/// How long the VMM may take to answer a request that costs it no time. Emulated hosts take seconds for what
/// others do in milliseconds.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Most kinds of VM exits that a VMM may count.
const MAX_EXIT_KINDS: usize = 64;

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {}: {source}", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error("starting {}: {source}", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("configuring the VMM: {0}")]
    Configure(#[from] nacre_protocol::control::Error),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::System {
        what,
        source: source.into(),
    }
}

/// A VMM that was started; the sandbox's way to control it.
#[derive(Debug)]
pub struct Vm {
    pid: u32,
    disks: Arc<Disks>,
    pidfd: Arc<OwnedFd>,
    channel: Arc<AsyncFd<Channel>>,
    requests: Arc<Requests>,
    memory: MemoryControl,
    /// What the VMM gets with its configuration.
    boot_files: Option<BootFiles>,
    console: File,
    stderr_tail: Arc<StderrTail>,
    /// The lowest that a container asks for.
    oom_score_adj: Option<i32>,
    /// Tells the monitor that the VMM must exit soon.
    killed: Arc<Notify>,
}

impl Vm {
    /// Starts a VMM in `cgroup`, with the CPUs and the oom_score_adj of `spec`. It waits for
    /// [`Vm::configure`]. Returns it with its monitor, which must be run, and the table of the streams that
    /// it expects.
    ///
    /// # Errors
    /// [`Error`] with the file or system call that failed.
    pub fn start(
        config: &Config,
        cgroup: &Cgroup,
        spec: &PodSpec,
    ) -> Result<(Self, VmmMonitor, StreamTable), Error> {
        let files = Files::open(config)?;
        // If the program is missing, this error names it; after a fork only an exit code would.
        drop(open("VMM", &config.vmm, false)?);
        let (ours, theirs) = socket_pair().map_err(system("control socket"))?;
        let (stderr, stderr_writer) = io::pipe().map_err(system("pipe"))?;
        let spawned = spawn(&config.vmm, cgroup, theirs.as_fd(), stderr_writer.as_fd())?;
        drop((theirs, stderr_writer));
        let channel = set_up(&spawned, spec)
            .and_then(|()| nonblocking(Channel::new(ours)).map_err(system("control socket")));
        let channel = match channel {
            Ok(channel) => Arc::new(channel),
            Err(error) => {
                sys::end_child(&spawned.pidfd);
                return Err(error);
            }
        };
        let requests = Arc::new(Requests::new(Arc::clone(&channel)));
        let vm = Self {
            pid: pid_of(&spawned),
            pidfd: Arc::new(spawned.pidfd),
            channel: Arc::clone(&channel),
            memory: MemoryControl::new(Arc::clone(&requests)),
            disks: Arc::new(Disks::new(Arc::clone(&requests))),
            requests,
            boot_files: Some(files.boot),
            console: files.console,
            stderr_tail: Arc::default(),
            oom_score_adj: spec.oom_score_adj,
            killed: Arc::default(),
        };
        let monitor = VmmMonitor {
            channel,
            requests: Arc::clone(&vm.requests),
            pidfd: Arc::clone(&vm.pidfd),
            stderr,
            stderr_tail: Arc::clone(&vm.stderr_tail),
            killed: Arc::clone(&vm.killed),
        };
        Ok((vm, monitor, files.stream_table))
    }

    /// Sends the VMM its configuration; the VM boots. Does nothing the second time.
    ///
    /// # Errors
    /// If the message cannot be sent.
    pub fn configure(&mut self, boot: &Boot<'_>) -> Result<(), Error> {
        let Some(files) = self.boot_files.take() else {
            return Ok(());
        };
        let (message, attachments) = boot.configuration(&files, &self.console);
        match self.channel.get_ref().send(&message, &attachments.as_raw_fds()) {
            // If the VMM has exited already, its exit status and standard error say why, better than this.
            Ok(())
            | Err(nacre_protocol::control::Error::Socket(nix::Error::EPIPE | nix::Error::ECONNRESET)) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The VMM's pid on the host, which is the pid of every task in containerd's messages.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The VMM's pidfd, to enter its namespaces.
    #[must_use]
    pub fn shared_pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// Adjusts the VMM's OOM score for a further container. The lowest adjustment of all containers counts,
    /// since they are killed together; it stays when a container is deleted.
    pub fn add_oom_score_adj(&mut self, adjustment: i32) {
        let lowest = self
            .oom_score_adj
            .map_or(adjustment, |known| known.min(adjustment));
        if self.oom_score_adj.replace(lowest) != Some(lowest) {
            set_oom_score_adj(self.pid, lowest);
        }
    }

    /// Lets the VM run on these CPUs of the host only.
    ///
    /// # Errors
    /// As sched_setaffinity(2); EINVAL if the host has none of them.
    pub fn set_cpus(&self, cpus: &[usize]) -> io::Result<()> {
        affinity::set_all(self.pid, cpus)
    }

    /// Kills the VMM, and its guest with it. Does nothing if it has exited already.
    pub fn kill(&self) {
        self.killed.notify_one();
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            crate::log::error(format_args!("killing the VMM {}: {error}", self.pid));
        }
    }

    /// Asks the VMM for its counts of VM exits, now. The future is their number by kind.
    pub fn exits(&self) -> impl Future<Output = Result<BTreeMap<String, u64>, RequestError>> + 'static {
        let answer = self.requests.send(Request::Exits, REQUEST_DEADLINE);
        async move { exits_in(answer.await?) }
    }

    /// What plugs memory into this VM.
    #[must_use]
    pub fn memory_control(&self) -> MemoryControl {
        self.memory.clone()
    }

    /// The disks of this VM.
    #[must_use]
    pub fn disks(&self) -> Arc<Disks> {
        Arc::clone(&self.disks)
    }

    /// Adds a network device to the running VM, now: for the link `nic`, whose taps the VMM then has, too. The
    /// future is its slot on the guest's PCI bus, which the guest must scan again; it finds the device by its
    /// address.
    pub fn attach_net(&self, nic: &Nic) -> impl Future<Output = Result<u8, RequestError>> + use<> + 'static {
        let mut attachments = Attachments::default();
        let device = net_device(nic, &mut attachments);
        self.requests.attach(device, &attachments)
    }

    /// Adds the devices that every VM has to the running VM, now. The guest finds them when it scans its PCI
    /// bus again, which it should do once the future is ready.
    pub fn attach_common(&self) -> impl Future<Output = Result<(), RequestError>> + use<> + 'static {
        self.requests.carry_out(Request::AttachCommon)
    }

    /// The last 20 lines of the guest's console, without control characters.
    #[must_use]
    pub fn console_tail(&self) -> Vec<String> {
        const LINES: usize = 20;
        console::last_lines(&self.console, LINES).unwrap_or_else(|error| vec![format!("(console: {error})")])
    }

    /// The last lines of the VMM's standard error, without control characters.
    #[must_use]
    pub fn stderr_tail(&self) -> Vec<String> {
        self.stderr_tail.lines()
    }
}

/// The counts of VM exits in an answer of the VMM, bounded.
fn exits_in(answer: Answer) -> Result<BTreeMap<String, u64>, RequestError> {
    let Answer::Exits(exits) = answer else {
        return Err(RequestError::WrongAnswer);
    };
    let exits = exits.into_iter().take(MAX_EXIT_KINDS);
    Ok(exits
        .map(|(kind, count)| (printable(&kind, MAX_NAME), count))
        .collect())
}

fn pid_of(spawned: &sys::Spawned) -> u32 {
    u32::try_from(spawned.pid.as_raw()).unwrap_or_default()
}

/// Sets what the VMM's threads inherit. It waits for its configuration, so it has only one thread so far.
fn set_up(spawned: &sys::Spawned, spec: &PodSpec) -> Result<(), Error> {
    set_oom_score_adj(pid_of(spawned), spec.oom_score_adj.unwrap_or(0));
    affinity::set(spawned.pid, &spec.cpus)
        .map_err(system("running the VMM on the CPUs of linux.resources.cpu.cpus"))
}

fn spawn(
    program: &Path,
    cgroup: &Cgroup,
    control: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<sys::Spawned, Error> {
    let directory = cgroup.make()?;
    let failed = |source| Error::Spawn {
        program: program.to_owned(),
        source,
    };
    let path =
        CString::new(program.as_os_str().as_bytes()).map_err(|error| failed(io::Error::other(error)))?;
    let fd = nacre_protocol::control::CONTROL_FD.to_string();
    let arguments = ["nacre-vmm", "--control-fd", &fd].map(|word| CString::new(word).unwrap_or_default());
    let spawn = sys::Spawn {
        program: &path,
        arguments: &arguments,
        cgroup: directory.as_fd(),
        control,
        stderr,
    };
    sys::spawn(&spawn).map_err(failed)
}

/// Sets the OOM killer's preference for a process, -1000..=1000 (proc_pid_oom_score_adj(5)). The VMM would
/// inherit the shim's, which is that of containerd's daemons.
fn set_oom_score_adj(pid: u32, adjustment: i32) {
    let file = format!("/proc/{pid}/oom_score_adj");
    if let Err(error) = std::fs::write(&file, adjustment.to_string()) {
        crate::log::warn(format_args!("writing {adjustment} to {file}: {error}"));
    }
}

fn nonblocking(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    let flags = rustix::fs::fcntl_getfl(&channel)?;
    rustix::fs::fcntl_setfl(&channel, flags | rustix::fs::OFlags::NONBLOCK)?;
    sys::watch_channel(channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_vm_exits_are_bounded() {
        let exits = (0..1000).map(|n| (format!("{n}{}", "\x1b".repeat(1000)), n));
        let bounded = exits_in(Answer::Exits(exits.collect())).unwrap();
        assert_eq!(bounded.len(), MAX_EXIT_KINDS);
        let is_bounded = |kind: &String| kind.len() <= MAX_NAME && !kind.contains('\x1b');
        assert!(bounded.keys().all(is_bounded));
        assert!(matches!(exits_in(Answer::Done), Err(RequestError::WrongAnswer)));
    }
}
