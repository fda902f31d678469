//! The helper's side: libcontainer, called in a process that has nothing else to do. The program's `main` comes here
//! first thing when its name is [`super::HELPER`]; never called by the agent itself.

use std::error::Error as StdError;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nacre_protocol::control::{self, Channel};
use oci_spec::runtime::LinuxSeccomp;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::console::Console;
use super::executor::CommandExecutor;
use super::{Create, FromHelper, LATE_FILTER, bring_loopback_up, console, events, mounts};
use crate::container::Names;
use crate::devices;

/// Makes the container that the agent asks for, and waits until the agent knows it. The exit status.
pub fn main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            crate::report::to_console(&format!("container helper: {}", chain(&*error)));
            1
        }
    }
}

type Failure = Box<dyn StdError>;

fn run() -> Result<(), Failure> {
    // The container is not to inherit the agent's exemption from the out-of-memory killer.
    fs::write("/proc/self/oom_score_adj", "0")?;
    // Standard input is to become the container's.
    let channel = Channel::new(fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?);
    events::install(fcntl_dupfd_cloexec(&channel, 3)?)?;
    let (create, fds) = match channel.receive::<Create>() {
        Err(control::Error::Closed) => return Ok(()),
        request => request?,
    };
    let stdio: [OwnedFd; 3] = fds
        .try_into()
        .map_err(|_| "three streams are to come with a request")?;
    match make(&create, stdio) {
        Ok((pid, terminal)) => {
            let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
            channel.send(&FromHelper::Created { pid }, &fds)?;
        }
        Err(error) => channel.send(&FromHelper::Failed(chain(&*error)), &[])?,
    }
    // Nothing more comes: this is the end of the agent's interest.
    match channel.receive::<()>() {
        Err(control::Error::Closed) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err("a second request".into()),
    }
}

fn make(create: &Create, stdio: [OwnedFd; 3]) -> Result<(i32, Option<OwnedFd>), Failure> {
    let console = create.terminal.map(|size| console::listen(&create.bundle, size));
    let console = console.transpose()?;
    let [stdin, stdout, stderr] = stdio;
    let mut container = ContainerBuilder::new(create.id.clone(), SyscallType::Linux)
        .with_root_path(&create.state)?
        .with_executor(CommandExecutor::new(
            create.find_home,
            late_filter(&create.bundle)?,
        ))
        .with_console_socket(console.as_ref().map(Console::path))
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .as_init(&create.bundle)
        .with_systemd(false)
        .build()?;
    finish(create, &container, console).inspect_err(|_| {
        // What is told is why it could not be finished; the agent removes what this leaves.
        let _ = container.delete(true);
    })
}

fn late_filter(bundle: &Path) -> Result<Option<LinuxSeccomp>, Failure> {
    match fs::read(bundle.join(LATE_FILTER)) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What libcontainer does not do, while init waits at its gate.
fn finish(
    create: &Create,
    container: &Container,
    console: Option<Console>,
) -> Result<(i32, Option<OwnedFd>), Failure> {
    let pid = container.pid().ok_or("libcontainer knows no pid")?.as_raw();
    if !create.devices.is_empty() {
        devices::load::attach(&create.devices, &create.cgroup)?;
    }
    if create.new_network {
        let network = fs::File::open(Path::new("/proc").join(pid.to_string()).join("ns/net"))?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        bring_loopback_up()?;
    }
    name(pid, &create.names)?;
    let terminal = console.map(Console::receive).transpose()?;
    // Last: the file system is the container's from then on.
    mounts::finish(pid, &create.mounts)?;
    Ok((pid, terminal))
}

/// Names the UTS namespace that process `pid` has joined.
fn name(pid: i32, names: &Names) -> Result<(), Failure> {
    if *names == Names::default() {
        return Ok(());
    }
    let namespace = fs::File::open(format!("/proc/{pid}/ns/uts"))?;
    move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::HostNameAndNISDomainName),
    )?;
    if let Some(host) = &names.host {
        rustix::system::sethostname(host.as_bytes())?;
    }
    if let Some(domain) = &names.domain {
        rustix::system::setdomainname(domain.as_bytes())?;
    }
    Ok(())
}

/// An error with its causes; a cause that the text before it already ends with is not said twice.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
