//! The helper's side: calls libcontainer, in a process that does nothing else. The program's `main` calls
//! [`main`] if `argv[0]` is [`super::HELPER`]; the agent itself never does.

use std::error::Error as StdError;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nacre_protocol::control::{self, Channel};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::console::Console;
use super::executor::CommandExecutor;
use super::{
    Create, FromHelper, LATE_FILTER, bring_loopback_up, console, destinations, error_log, late, propagation,
    restrictions, workdir,
};
use crate::error::truncate;
use crate::spec::UtsNames;
use crate::{devices, keyring};

/// Creates the container that the agent requests, and waits until the agent closes the socket. Returns the
/// process's exit status.
pub fn main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            crate::report::to_console(&format!("container helper: {}", chain(&*error)));
            1
        }
    }
}

/// An error that ends the helper, or the creation of the container.
pub(super) type Failure = Box<dyn StdError>;

fn run() -> Result<(), Failure> {
    // The container must not inherit the agent's exemption from the OOM killer.
    fs::write("/proc/self/oom_score_adj", "0")?;
    // A duplicate, because descriptor 0 becomes the container's standard input.
    let channel = Channel::new(fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?);
    error_log::install(fcntl_dupfd_cloexec(&channel, 3)?)?;
    let (create, fds) = match channel.receive::<Create>() {
        Err(control::Error::Closed) => return Ok(()),
        request => request?,
    };
    let stdio: [OwnedFd; 3] = fds
        .try_into()
        .map_err(|_| "expected three descriptors with a Create request")?;
    let (reply, terminal) = match prepare_files(&create)? {
        Err((field, reason)) => {
            let (field, reason) = (field.to_owned(), truncate(reason));
            (FromHelper::BadSpec { field, reason }, None)
        }
        Ok(report) => match create_container(&create, stdio) {
            Ok((pid, terminal)) => (FromHelper::Created { pid }, terminal),
            Err(error) => {
                let late = report.and_then(late::Report::read);
                let reason = late.unwrap_or_else(|| chain(&*error));
                (FromHelper::Failed(truncate(reason)), None)
            }
        },
    };
    let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
    channel.send(&reply, &fds)?;
    // Init's parent must live until the agent's reaper watches init: wait for the end of the socket.
    match channel.receive::<()>() {
        Err(control::Error::Closed) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err("unexpected second request".into()),
    }
}

/// Gives the container's mounts and its working directory their places in the bundle's spec, and creates the working
/// directory. The inner error is a field of the spec that can't be honoured.
fn prepare_files(create: &Create) -> Result<Result<Option<late::Report>, (&'static str, String)>, Failure> {
    let file = create.bundle.join("config.json");
    let mut spec: Spec = serde_json::from_slice(&fs::read(&file)?)?;
    let before = spec.clone();
    if let Err(reason) = restrictions::apply(&create.restrictions, &mut spec) {
        return Ok(Err(("mounts", reason)));
    }
    let arranged = match destinations::arrange(&mut spec) {
        Ok(arranged) => arranged,
        Err(refused) => return Ok(Err(refused)),
    };
    let created = arranged
        .working_directory
        .as_ref()
        .map_or(Ok(()), workdir::create);
    if let Err(reason) = created {
        return Ok(Err(("process.cwd", reason)));
    }
    let report = arranged.late.add_to(&mut spec)?;
    if spec != before {
        fs::write(&file, serde_json::to_vec(&spec)?)?;
    }
    Ok(Ok(report))
}

fn create_container(create: &Create, stdio: [OwnedFd; 3]) -> Result<(i32, Option<OwnedFd>), Failure> {
    let console = create
        .terminal
        .map(|terminal| console::listen(&create.bundle, terminal))
        .transpose()?;
    // Its children inherit it.
    keyring::create(&create.id).map_err(|error| format!("session keyring: {error}"))?;
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
        // Ignore this error: the original one is returned, and the agent cleans up the rest.
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

/// Does the steps that libcontainer lacks, while init waits for the start notification. Returns init's pid
/// and the master of its terminal.
fn finish(
    create: &Create,
    container: &Container,
    console: Option<Console>,
) -> Result<(i32, Option<OwnedFd>), Failure> {
    let pid = container
        .pid()
        .ok_or("libcontainer returned no pid of init")?
        .as_raw();
    if !create.devices.is_empty() {
        devices::load::attach(&create.devices, &create.cgroup)?;
    }
    if create.new_network {
        let network = fs::File::open(Path::new("/proc").join(pid.to_string()).join("ns/net"))?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        bring_loopback_up()?;
    }
    set_uts_names(pid, &create.uts_names)?;
    let terminal = console.map(Console::receive).transpose()?;
    // Last, because it enters the container's mount namespace.
    propagation::apply(pid, &create.propagation)?;
    Ok((pid, terminal))
}

/// Sets the host name and domain name in the UTS namespace of process `pid`.
fn set_uts_names(pid: i32, names: &UtsNames) -> Result<(), Failure> {
    if *names == UtsNames::default() {
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

/// An error with its causes; a cause that the text so far already ends with is not repeated.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
