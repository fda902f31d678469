//! The forked child that becomes a container's init, from its first instruction to execve. Never returns to
//! the agent's code.
//!
//! Until execve the child has a copy of the agent's memory. It is undumpable, so that no process of the
//! container can ptrace it, and it closes the agent's descriptors before it resolves a path of the container,
//! as an exec process does.

use std::convert::Infallible;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};

use nacre_protocol::control::Channel;
use oci_spec::runtime::{LinuxNamespaceType as Kind, Process, Spec};
use rustix::process::DumpableBehavior;

use super::destinations::{self, Arranged};
use super::namespaces::{self, Namespaces};
use super::{FromChild, InitRequest, dev, hooks, paths, restrictions, root, workdir};
use crate::child::{
    Failure, at, become_user, limits, load_seccomp, open_terminal, set_scheduling, set_stdio,
};
use crate::command::{Command, reopen_null};
use crate::error::{Error, truncate};
use crate::fork::close_others;
use crate::spec::has_namespace;
use crate::terminal::Terminal;
use crate::{keyring, pod, signal};

/// Exit status of a child that could not be set up. The agent discards it.
const FAILED: i32 = 255;
/// Exit status of init if execve fails after the start notification, as with runc.
const NOT_EXECUTED: i32 = 1;
/// The process's name in ps(1) until it executes the command.
const NAME: &std::ffi::CStr = c"nacre:init";

/// What is prepared in the agent's mount namespace.
pub struct Files {
    spec: Spec,
    arranged: Arranged,
}

/// Runs every step up to execve in an init that the agent has forked. Returns the exit status after it has reported why it
/// failed.
pub fn run(
    request: &InitRequest<'_>,
    namespaces: &Namespaces,
    stdio: &[OwnedFd; 3],
    report: &Channel,
) -> i32 {
    finish(report, || {
        leave_agent(request, namespaces, stdio, report)?;
        let files = prepare(request)?;
        set_up(request, namespaces, &files, report)
    })
}

/// As [`run`], for an init that a forerunner has forked, which has prepared `files`.
pub fn run_forked(
    request: &InitRequest<'_>,
    namespaces: &Namespaces,
    stdio: &[OwnedFd; 3],
    report: &Channel,
    files: &Files,
) -> i32 {
    finish(report, || {
        leave_agent(request, namespaces, stdio, report)?;
        // The agent writes the id maps, and watches this process.
        if !wait(report) {
            std::process::exit(FAILED);
        }
        if has_namespace(request.spec, Kind::User) {
            namespaces::become_root()?;
        }
        set_up(request, namespaces, files, report)
    })
}

fn finish(report: &Channel, work: impl FnOnce() -> Result<Infallible, Failure>) -> i32 {
    let message = match work() {
        Ok(never) => match never {},
        Err(Failure::Command(text)) => FromChild::Command(truncate(text)),
        Err(Failure::Field(field, reason)) => FromChild::BadSpec {
            field: field.to_owned(),
            reason: truncate(reason),
        },
        Err(Failure::Step(text)) => FromChild::Failed(truncate(text)),
    };
    // If this fails, the agent reports that the init has exited.
    let _ = report.send(&message, &[]);
    FAILED
}

/// Waits until the agent sends a byte. False: it has closed its end.
pub fn wait(channel: &Channel) -> bool {
    // By read(2), which almost every seccomp filter allows.
    loop {
        match rustix::io::read(channel, &mut [0_u8]) {
            Ok(length) => return length > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Gives up what the child has of the agent.
fn leave_agent(
    request: &InitRequest<'_>,
    namespaces: &Namespaces,
    stdio: &[OwnedFd; 3],
    report: &Channel,
) -> Result<(), Failure> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("PR_SET_DUMPABLE"))?;
    rustix::thread::set_name(NAME).map_err(at("PR_SET_NAME"))?;
    signal::restore_default_sigchld().map_err(at("SIGCHLD"))?;
    if Terminal::wanted(process(request.spec)?).is_none() {
        set_stdio(stdio.each_ref().map(|fd| fd.as_fd()))?;
    }
    let mut kept: Vec<_> = namespaces.descriptors().collect();
    kept.push(report.as_raw_fd());
    close_others(&mut kept).map_err(at("closing descriptors"))?;
    rustix::process::setsid().map(drop).map_err(at("setsid"))
}

/// Does what must be done in the agent's mount namespace, and in its user namespace.
pub fn prepare(request: &InitRequest<'_>) -> Result<Files, Failure> {
    keyring::create(request.id).map_err(at("session keyring"))?;
    let mut spec = request.spec.clone();
    restrictions::apply(request.restrictions, &mut spec)
        .map_err(|reason| Failure::Field("mounts", reason))?;
    let arranged = destinations::arrange(&mut spec)?;
    if let Some(directory) = &arranged.working_directory {
        workdir::create(directory).map_err(|reason| Failure::Field("process.cwd", reason))?;
    }
    Ok(Files { spec, arranged })
}

fn process(spec: &Spec) -> Result<&Process, Failure> {
    let process = spec.process().as_ref();
    process.ok_or_else(|| Failure::Field("process", "is missing".to_owned()))
}

/// From the agent's namespaces to the start notification, and then the command.
fn set_up(
    request: &InitRequest<'_>,
    namespaces: &Namespaces,
    files: &Files,
    report: &Channel,
) -> Result<Infallible, Failure> {
    let spec = &files.spec;
    let process = process(spec)?;
    set_scheduling(process)?;
    enter(namespaces, spec)?;
    let (root, read_only) = root::prepare(spec, &files.arranged, request.propagation)?;
    // Before the guest's procfs is left: the container need not have one.
    pod::set_own_sysctls(spec).map_err(|error| {
        if let Error::BadSpec { reason, .. } = error {
            Failure::Field("linux.sysctl", reason)
        } else {
            Failure::Step(error.to_string())
        }
    })?;
    root::enter(spec, &root)?;
    drop(root);
    let mut kept: Vec<_> = read_only.iter().map(AsRawFd::as_raw_fd).collect();
    kept.push(report.as_raw_fd());
    close_others(&mut kept).map_err(at("closing descriptors"))?;
    reopen_null().map_err(at("/dev/null"))?;
    if let Some(terminal) = Terminal::wanted(process) {
        let slave = open_terminal(terminal, report, &FromChild::Terminal)?;
        dev::bind_console(&slave)?;
    }
    root::make_read_only(spec, &read_only)?;
    drop(read_only);
    paths::restrict(spec)?;
    if !has_namespace(spec, Kind::User) {
        limits::set_all(process)?;
    }
    become_user(process, spec, request.filter)?;
    let command = Command::find(process, request.find_home).map_err(Failure::Command)?;
    report.send(&FromChild::Ready, &[]).map_err(at("reporting"))?;
    if !wait(report) {
        std::process::exit(FAILED);
    }
    let reason = execute(request, spec, &command);
    // CreateContainer has returned already, so the error goes to the container's standard error.
    let _ = writeln!(std::io::stderr(), "{reason}");
    std::process::exit(NOT_EXECUTED);
}

fn enter(namespaces: &Namespaces, spec: &Spec) -> Result<(), Failure> {
    namespaces.enter_others()?;
    if namespaces.makes(Kind::Network) {
        crate::loopback::bring_up().map_err(at("bringing the loopback device up"))?;
    }
    if namespaces.makes(Kind::Uts) {
        if let Some(name) = spec.hostname().as_ref().filter(|name| !name.is_empty()) {
            rustix::system::sethostname(name.as_bytes()).map_err(at("hostname"))?;
        }
        if let Some(name) = spec.domainname().as_ref().filter(|name| !name.is_empty()) {
            rustix::system::setdomainname(name.as_bytes()).map_err(at("domainname"))?;
        }
    }
    Ok(())
}

/// Runs the hooks, then executes the command. Returns only why that failed.
fn execute(request: &InitRequest<'_>, spec: &Spec, command: &Command) -> String {
    let environment = command.environment();
    if let Err(reason) = hooks::run(spec, request.id, &environment) {
        return format!("startContainer: {reason}");
    }
    let process = spec.process().as_ref();
    let no_new_privileges = process.and_then(Process::no_new_privileges) == Some(true);
    if no_new_privileges && let Err(failure) = load_seccomp(request.filter) {
        return format!("exec {}: {failure}", command.path().display());
    }
    match command.execute() {
        Ok(never) => match never {},
        Err(reason) => format!(
            "exec {}: {}",
            command.path().display(),
            reason.desc().to_lowercase()
        ),
    }
}
