//! A pod's VMM: started here, followed until its end. The sandbox's owner gets what happens as [`Event`]s in its queue
//! and holds a [`Vm`] to end it. Speaks `nacre_protocol::control`; knows nothing of containers.

mod end;
mod follow;
mod last_words;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_protocol::console;
use nacre_protocol::control::{Channel, Configure, ToVmm};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::cgroup::{self, Cgroup};
use crate::sys;
use nacre_protocol::config::{Config, Size};

pub use end::{End, Status};
pub use follow::{Event, VmmMonitor, follow};
pub use last_words::LastWords;

/// Why there is no VMM.
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

/// A running VMM, as its owner holds it.
#[derive(Debug)]
pub struct Vm {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    channel: Arc<AsyncFd<Channel>>,
    console: File,
    last_words: Arc<LastWords>,
}

impl Vm {
    /// Opens what the VMM needs, starts it in `cgroup` and configures it; gives what [`follow()`] takes, too. It runs on the
    /// host's `cpus`; on all where there are none named.
    ///
    /// # Errors
    /// [`Error`] with the file or step.
    pub fn start(
        config: &Config,
        size: Size,
        pod: &str,
        cgroup: &Cgroup,
        cpus: &[usize],
    ) -> Result<(Self, VmmMonitor), Error> {
        let kvm = open("/dev/kvm", Path::new("/dev/kvm"), true)?;
        let kernel = open("guest kernel", &config.kernel, false)?;
        let initrd = open("guest image", &config.initrd, false)?;
        // A missing program is told here, better than by the exit code of a child.
        drop(open("VMM", &config.vmm, false)?);
        let console =
            sys::memory_file("nacre-console", console::RING_BYTES).map_err(system("console ring"))?;
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(system("control socket"))?;
        let (words, stderr) = io::pipe().map_err(system("pipe"))?;
        let spawned = spawn(&config.vmm, cgroup, theirs.as_fd(), stderr.as_fd())?;
        drop((theirs, stderr));
        let pid = u32::try_from(spawned.pid.as_raw()).unwrap_or_default();
        reset_oom_score(pid);
        // It waits for its configuration: its other threads come later and inherit this.
        run_on(spawned.pid, cpus)
            .map_err(system("running the VMM on the CPUs of linux.resources.cpu.cpus"))?;
        let channel = Channel::new(ours);
        let configure = ToVmm::Configure(Configure {
            build_id: nacre_protocol::BUILD_ID.to_owned(),
            pod: pod.to_owned(),
            memory_mib: size.memory_mib,
            vcpus: size.vcpus,
            extra_cmdline: config.kernel_params.clone(),
            console_to_stderr: config.console_to_log,
        });
        let fds = [
            kvm.as_raw_fd(),
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            console.as_raw_fd(),
        ];
        match channel.send(&configure, &fds) {
            // It is gone already: its end tells why, better than this.
            Ok(())
            | Err(nacre_protocol::control::Error::Socket(nix::Error::EPIPE | nix::Error::ECONNRESET)) => {}
            Err(error) => return Err(error.into()),
        }
        let channel = Arc::new(nonblocking(channel).map_err(system("control socket"))?);
        let pidfd = Arc::new(spawned.pidfd);
        let last_words = Arc::new(LastWords::default());
        let followed = VmmMonitor::new(
            Arc::clone(&channel),
            Arc::clone(&pidfd),
            words,
            Arc::clone(&last_words),
        );
        Ok((
            Self {
                pid,
                pidfd,
                channel,
                console,
                last_words,
            },
            followed,
        ))
    }

    /// Its pid on the host; what containerd gets as the task's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process, for entering its namespaces.
    #[must_use]
    pub fn shared_pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// Ends it at once, with its guest. That it has ended already is fine.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            crate::log::error(format_args!("killing the VMM {}: {error}", self.pid));
        }
    }

    /// Asks for [`Event::Exits`].
    pub fn query_exits(&self) {
        if let Err(error) = self.channel.get_ref().send(&ToVmm::QueryExits, &[]) {
            crate::log::warn(format_args!("asking for the VM's exits: {error}"));
        }
    }

    /// The last lines of the guest's console.
    #[must_use]
    pub fn console_tail(&self) -> Vec<String> {
        const LINES: usize = 20;
        console::last_lines(&self.console, LINES).unwrap_or_else(|error| vec![format!("(console: {error})")])
    }

    /// The last lines of the VMM's standard error.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        self.last_words.lines()
    }
}

fn open(what: &'static str, path: &Path, write: bool) -> Result<File, Error> {
    let source = match File::options().read(true).write(write).open(path) {
        Ok(file) => return Ok(file),
        Err(source) => source,
    };
    // The first word names /dev/kvm already.
    let what = if what == "/dev/kvm" {
        "the KVM device"
    } else {
        what
    };
    Err(Error::Open {
        what,
        path: path.to_owned(),
        source,
    })
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

fn run_on(pid: nix::unistd::Pid, cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = nix::sched::CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(nix::sched::sched_setaffinity(pid, &set)?)
}

/// The shim is as precious as containerd's other shims; a pod's memory is not.
fn reset_oom_score(pid: u32) {
    let file = format!("/proc/{pid}/oom_score_adj");
    if let Err(error) = std::fs::write(&file, "0") {
        crate::log::warn(format_args!("{file}: {error}"));
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
    fn a_process_runs_on_the_cpus_that_are_named() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let allowed = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            line.unwrap().trim().to_owned()
        };
        let all = allowed();
        run_on(pid, &[]).unwrap();
        let before = allowed();
        run_on(pid, &[0]).unwrap();
        let after = allowed();
        let error = run_on(pid, &[1023]).map_err(|error| error.kind());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((before, after.as_str()), (all, "0"));
        assert_eq!(error, Err(io::ErrorKind::InvalidInput));
    }
}
