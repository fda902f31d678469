//! The forked child, from its first instruction to execve: what the container says of every process, what the request
//! says of this one, in the order in which privileges are needed. Never returns to the agent's code.
//!
//! It still has the agent's memory while it is in the container: it is made undumpable first, so that no process there
//! may look at it (but one with CAP_SYS_PTRACE and without a user namespace, which is no border in a guest anyway). The
//! agent's descriptors are closed before a path of the container's is looked at: no link there may lead to them.

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

use super::fork::close_others;
use super::{FromChild, Job};
use crate::command::{Command, open_in_container, reopen_null};
use crate::container::has_namespace;
use crate::scheduler;
use crate::terminal::Terminal;

/// Exit status of a child that could not become its command; nobody is told of it.
const FAILED: i32 = 255;
/// Device number of /dev/ptmx (Documentation/admin-guide/devices.txt).
const PTMX: (u32, u32) = (5, 2);
/// Longest text of a failure, bytes.
const MAX_TEXT: usize = 4096;
/// What a process makes files with where its spec says nothing.
const UMASK: u32 = 0o022;

/// Why the child ends.
enum Failure {
    Command(String),
    Step(String),
}

/// For `map_err`: the step that failed.
fn at<E: std::fmt::Display>(step: &str) -> impl FnOnce(E) -> Failure + '_ {
    move |error| Failure::Step(format!("{step}: {error}"))
}

/// Becomes the command of `job`; returns where it can't and has told why.
pub fn run(job: &Job<'_>, stdio: &[OwnedFd; 3], report: &Channel) -> i32 {
    let message = match become_command(job, stdio, report) {
        Ok(never) => match never {},
        Err(Failure::Command(text)) => FromChild::Command(shortened(text)),
        Err(Failure::Step(text)) => FromChild::Failed(shortened(text)),
    };
    // Where the filter of system calls denies even this, the end of the process says it.
    let _ = report.send(&message, &[]);
    FAILED
}

/// Names in it may be as long as the caller likes; a message may not.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

fn become_command(job: &Job<'_>, stdio: &[OwnedFd; 3], report: &Channel) -> Result<Infallible, Failure> {
    let (process, spec) = (job.process, job.spec);
    let calls = create_syscall();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("hiding memory"))?;
    let terminal = Terminal::wanted(process);
    if terminal.is_none() {
        give(stdio.each_ref().map(|fd| fd.as_fd()))?;
    }
    close_others(&mut [report.as_raw_fd(), job.init.1.as_raw_fd()]).map_err(at("closing files"))?;
    scheduling(process, &*calls)?;
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
    move_into_thread_name_spaces(job.init.1, namespaces(spec)).map_err(at("entering the container"))?;
    rustix::process::setsid().map_err(at("setsid"))?;
    close_others(&mut [report.as_raw_fd()]).map_err(at("closing files"))?;
    if let Some(terminal) = terminal {
        attach(terminal, report)?;
    }
    reopen_null().map_err(at("/dev/null"))?;
    let filter = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    become_user(process, spec, filter, &*calls)?;
    let command = Command::find(process, job.find_home).map_err(Failure::Command)?;
    if process.no_new_privileges() == Some(true) {
        load(filter)?;
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

/// Its way to a CPU and to a disk.
fn scheduling(process: &Process, calls: &dyn Syscall) -> Result<(), Failure> {
    let affinity = process.exec_cpu_affinity().as_ref();
    let last = affinity.and_then(|affinity| {
        affinity
            .cpu_affinity_final()
            .as_ref()
            .or(affinity.initial().as_ref())
    });
    if let Some(list) = last {
        // The cgroup is the container's from the start: the last word is the only one.
        let mut set = CpuSet::new();
        for cpu in scheduler::cpu_list(list).map_err(at("execCPUAffinity"))? {
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

/// All but the pid namespace, which the child was born in.
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

fn give([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    let step = "standard streams";
    dup2_stdin(stdin).map_err(at(step))?;
    dup2_stdout(stdout).map_err(at(step))?;
    dup2_stderr(stderr).map_err(at(step))
}

/// A terminal of the container's own devpts becomes the session's.
fn attach(terminal: Terminal, report: &Channel) -> Result<(), Failure> {
    let step = "terminal";
    let master = open_in_container("/dev/ptmx", OFlags::RDWR)
        .ok_or_else(|| Failure::Step("terminal: /dev/ptmx can't be opened".to_owned()))?;
    if master.metadata().map_err(at(step))?.rdev() != libc::makedev(PTMX.0, PTMX.1) {
        return Err(Failure::Step(
            "terminal: /dev/ptmx is no multiplexer of terminals".to_owned(),
        ));
    }
    let master = OwnedFd::from(master);
    unlockpt(&master).map_err(at(step))?;
    let slave = terminal.open_slave(&master).map_err(at(step))?;
    report
        .send(&FromChild::Terminal, &[master.as_raw_fd()])
        .map_err(at(step))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(at(step))?;
    give([slave.as_fd(); 3])
}

/// From the guest's root to the process's user, in its directory, with no more than its capabilities.
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
    rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(UMASK)));
    // The directory may be one that only its user may enter, or only root.
    let entered = std::env::set_current_dir(process.cwd());
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups).map_err(at("additionalGids"))?;
    set_keep_capabilities(true).map_err(at("keeping capabilities"))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_thread_res_gid(gid, gid, gid).map_err(at("gid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(at("uid"))?;
    if !no_new_privileges {
        // Needs the capability that is dropped next.
        load(filter)?;
    }
    capabilities::reset_effective(calls).map_err(at("capabilities"))?;
    if let Some(wanted) = process.capabilities() {
        capabilities::drop_privileges(wanted, calls).map_err(at("capabilities"))?;
    }
    entered
        .or_else(|_| std::env::set_current_dir(process.cwd()))
        .map_err(|error| {
            let cwd = process.cwd().display();
            Failure::Step(format!("chdir to cwd ({cwd:?}): {}", words(&error)))
        })?;
    check_inside()
}

/// A directory outside the root has no path that begins with one.
fn check_inside() -> Result<(), Failure> {
    let cwd = rustix::process::getcwd(Vec::new()).map_err(at("current directory"))?;
    if Path::new(&*cwd.to_string_lossy()).is_absolute() {
        return Ok(());
    }
    Err(Failure::Step(
        "current directory: it is outside the container".to_owned(),
    ))
}

/// An error of the system as runc writes it.
fn words(error: &io::Error) -> String {
    let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
    errno.desc().to_lowercase()
}

fn load(filter: Option<&LinuxSeccomp>) -> Result<(), Failure> {
    match filter {
        Some(filter) => initialize_seccomp(filter).map(drop).map_err(at("seccomp")),
        None => Ok(()),
    }
}
