//! The forked child of an exec, from its first instruction to execve. It applies the container's properties
//! and those of the process object in the order in which it needs privileges. Never returns to the agent's
//! code.
//!
//! Until execve the child has a copy of the agent's memory. It becomes undumpable before it enters the
//! container, so that no process there can ptrace it. (A container with CAP_SYS_PTRACE and no user namespace
//! can read the agent's memory; only the VM isolates it.) It closes the agent's descriptors before it
//! resolves a path of the container, so that no link below /proc/self/fd leads to them.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use libcontainer::capabilities;
use libcontainer::config::PersonalityDomain;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use nacre_protocol::control::Channel;
use nacre_protocol::cpu_list;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use oci_spec::runtime::{
    IOPriorityClass, LinuxNamespaceType as Kind, LinuxPersonalityDomain, LinuxSeccomp, Process, Spec,
};
use rustix::fs::{Mode, OFlags};
use rustix::process::DumpableBehavior;
use rustix::pty::unlockpt;
use rustix::thread::{
    CpuSet, Gid, ThreadNameSpaceType, Uid, move_into_thread_name_spaces, sched_setaffinity,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{ExecRequest, FromChild};
use crate::command::{Command, open_in_container, reopen_null};
use crate::error::truncate;
use crate::fork::close_others;
use crate::spec::has_namespace;
use crate::terminal::Terminal;
use crate::{keyring, scheduler};

/// Exit status of a child that could not execute its command. The agent discards it.
const FAILED: i32 = 255;
/// Device number of /dev/ptmx (Documentation/admin-guide/devices.txt).
const PTMX: (u32, u32) = (5, 2);
/// The umask of a process whose spec has none, as with runc.
const DEFAULT_UMASK: u32 = 0o022;

/// Why the child cannot execute its command.
enum Failure {
    /// The command is missing or not executable; the text is runc's.
    Command(String),
    /// A step before the command failed.
    Step(String),
}

/// For `map_err`: names the step that failed.
fn at<E: std::fmt::Display>(step: &str) -> impl FnOnce(E) -> Failure + '_ {
    move |error| Failure::Step(format!("{step}: {error}"))
}

/// Executes the command of `request`. Returns the child's exit status after it has reported why that failed.
pub fn run(request: &ExecRequest<'_>, stdio: &[OwnedFd; 3], report: &Channel) -> i32 {
    let message = match execute_command(request, stdio, report) {
        Ok(never) => match never {},
        Err(Failure::Command(text)) => FromChild::Command(truncate(text)),
        Err(Failure::Step(text)) => FromChild::Failed(truncate(text)),
    };
    // This fails if the seccomp filter denies sendmsg. The agent then takes the closed socket for a
    // successful execve, and the caller sees a process that has exited.
    let _ = report.send(&message, &[]);
    FAILED
}

fn execute_command(
    request: &ExecRequest<'_>,
    stdio: &[OwnedFd; 3],
    report: &Channel,
) -> Result<Infallible, Failure> {
    let (process, spec) = (request.process, request.spec);
    let calls = create_syscall();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("PR_SET_DUMPABLE"))?;
    let terminal = Terminal::wanted(process);
    if terminal.is_none() {
        set_stdio(stdio.each_ref().map(|fd| fd.as_fd()))?;
    }
    close_others(&mut [report.as_raw_fd(), request.init.1.as_raw_fd()]).map_err(at("closing descriptors"))?;
    set_scheduling(process, &*calls)?;
    fs::write(
        "/proc/self/oom_score_adj",
        process.oom_score_adj().unwrap_or(0).to_string(),
    )
    .map_err(at("oom_score_adj"))?;
    for limit in process.rlimits().iter().flatten() {
        calls
            .set_rlimit(limit)
            .map_err(|error| Failure::Step(format!("rlimit {}: {error}", limit.typ())))?;
    }
    keyring::join(request.container_id).map_err(at("session keyring"))?;
    move_into_thread_name_spaces(request.init.1, namespaces(spec))
        .map_err(at("entering the container's namespaces"))?;
    rustix::process::setsid().map_err(at("setsid"))?;
    close_others(&mut [report.as_raw_fd()]).map_err(at("closing descriptors"))?;
    if let Some(terminal) = terminal {
        open_terminal(terminal, report)?;
    }
    reopen_null().map_err(at("/dev/null"))?;
    let filter = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    become_user(process, spec, filter, &*calls)?;
    let command = Command::find(process, request.find_home).map_err(Failure::Command)?;
    if process.no_new_privileges() == Some(true) {
        load_seccomp(filter)?;
    }
    match command.execute() {
        Ok(never) => match never {},
        Err(reason) => Err(Failure::Command(format!(
            "exec {}: {}",
            command.path().display(),
            reason.desc().to_lowercase()
        ))),
    }
}

/// CPU affinity, scheduling policy and I/O priority.
fn set_scheduling(process: &Process, calls: &dyn Syscall) -> Result<(), Failure> {
    let affinity = process.exec_cpu_affinity().as_ref();
    // `initial` applies until the process is in the container's cgroup; the child starts in it.
    let cpus = affinity.and_then(|affinity| {
        let lists = [affinity.cpu_affinity_final(), affinity.initial()];
        let list = lists.into_iter().flatten().find(|list| !list.is_empty());
        cpu_list::parse(list?)
    });
    if let Some(cpus) = cpus {
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set(cpu);
        }
        sched_setaffinity(None, &set).map_err(at("execCPUAffinity"))?;
    }
    if let Some(scheduler) = process.scheduler() {
        scheduler::set(scheduler).map_err(at("scheduler"))?;
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        calls
            .set_io_priority(class, priority.priority())
            .map_err(at("ioPriority"))?;
    }
    Ok(())
}

/// The namespaces to enter: all of the container's except the pid namespace, into which the child was forked.
fn namespaces(spec: &Spec) -> ThreadNameSpaceType {
    [
        (Kind::Mount, ThreadNameSpaceType::MOUNT),
        (Kind::Cgroup, ThreadNameSpaceType::CONTROL_GROUP),
        (Kind::Uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        (Kind::Ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        (Kind::User, ThreadNameSpaceType::USER),
        (Kind::Network, ThreadNameSpaceType::NETWORK),
        (Kind::Time, ThreadNameSpaceType::TIME),
    ]
    .into_iter()
    .filter(|(kind, _)| has_namespace(spec, *kind))
    .fold(ThreadNameSpaceType::empty(), |all, (_, flag)| all | flag)
}

fn set_stdio([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    let step = "standard streams";
    dup2_stdin(stdin).map_err(at(step))?;
    dup2_stdout(stdout).map_err(at(step))?;
    dup2_stderr(stderr).map_err(at(step))
}

/// Opens a terminal in the container's own devpts instance, sends its master to the agent and makes it the
/// session's controlling terminal.
fn open_terminal(terminal: Terminal, report: &Channel) -> Result<(), Failure> {
    let step = "terminal";
    let master = open_in_container("/dev/ptmx", OFlags::RDWR)
        .ok_or_else(|| Failure::Step("terminal: cannot open the container's /dev/ptmx".to_owned()))?;
    if master.metadata().map_err(at(step))?.rdev() != libc::makedev(PTMX.0, PTMX.1) {
        return Err(Failure::Step(
            "terminal: the container's /dev/ptmx is not the ptmx device (5:2)".to_owned(),
        ));
    }
    let master = OwnedFd::from(master);
    unlockpt(&master).map_err(at(step))?;
    let slave = terminal.open_slave(&master).map_err(at(step))?;
    report
        .send(&FromChild::Terminal, &[master.as_raw_fd()])
        .map_err(at(step))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(at(step))?;
    set_stdio([slave.as_fd(); 3])
}

/// Changes from root to the process's user, working directory and capabilities.
fn become_user(
    process: &Process,
    spec: &Spec,
    filter: Option<&LinuxSeccomp>,
    calls: &dyn Syscall,
) -> Result<(), Failure> {
    let user = process.user();
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(at("noNewPrivileges"))?;
    }
    let personality = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.personality().as_ref());
    if let Some(personality) = personality {
        let domain = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
            LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
        };
        calls.personality(domain).map_err(at("personality"))?;
    }
    rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(DEFAULT_UMASK)));
    // Tried as root and, if that fails, as the process's user: either may be the only one with access.
    let entered = std::env::set_current_dir(process.cwd());
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups).map_err(at("additionalGids"))?;
    set_keep_capabilities(true).map_err(at("PR_SET_KEEPCAPS"))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_thread_res_gid(gid, gid, gid).map_err(at("gid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(at("uid"))?;
    if !no_new_privileges {
        // Loading a filter needs CAP_SYS_ADMIN, which may be dropped next.
        load_seccomp(filter)?;
    }
    capabilities::reset_effective(calls).map_err(at("capabilities"))?;
    if let Some(sets) = process.capabilities() {
        capabilities::drop_privileges(sets, calls).map_err(at("capabilities"))?;
    }
    entered
        .or_else(|_| std::env::set_current_dir(process.cwd()))
        .map_err(|error| {
            let cwd = process.cwd().display();
            Failure::Step(format!("chdir to cwd ({cwd:?}): {}", runc_text(&error)))
        })?;
    check_inside()
}

/// Refuses a working directory outside the container's root: getcwd(2) returns "(unreachable)…" for it.
fn check_inside() -> Result<(), Failure> {
    let cwd = rustix::process::getcwd(Vec::new()).map_err(at("getcwd"))?;
    if Path::new(&*cwd.to_string_lossy()).is_absolute() {
        return Ok(());
    }
    Err(Failure::Step(
        "process.cwd: the directory is outside the container's root".to_owned(),
    ))
}

/// A system error as runc prints it.
fn runc_text(error: &io::Error) -> String {
    let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
    errno.desc().to_lowercase()
}

fn load_seccomp(filter: Option<&LinuxSeccomp>) -> Result<(), Failure> {
    match filter {
        Some(filter) => initialize_seccomp(filter).map(drop).map_err(at("seccomp")),
        None => Ok(()),
    }
}
