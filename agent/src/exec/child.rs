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
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nacre_protocol::control::Channel;
use nacre_protocol::cpu_list;
use oci_spec::runtime::{LinuxNamespaceType as Kind, Process, Spec};
use rustix::process::DumpableBehavior;
use rustix::thread::{CpuSet, ThreadNameSpaceType, move_into_thread_name_spaces, sched_setaffinity};

use super::{ExecRequest, FromChild};
use crate::child::{
    Failure, at, become_user, limits, load_seccomp, open_terminal, set_scheduling, set_stdio,
};
use crate::command::{Command, reopen_null};
use crate::error::truncate;
use crate::fork::close_others;
use crate::keyring;
use crate::spec::has_namespace;
use crate::terminal::Terminal;

/// Exit status of a child that could not execute its command. The agent discards it.
const FAILED: i32 = 255;

/// Executes the command of `request`. Returns the child's exit status after it has reported why that failed.
pub fn run(request: &ExecRequest<'_>, stdio: &[OwnedFd; 3], report: &Channel) -> i32 {
    let message = match execute_command(request, stdio, report) {
        Ok(never) => match never {},
        Err(Failure::Command(text)) => FromChild::Command(truncate(text)),
        Err(Failure::Step(text)) => FromChild::Failed(truncate(text)),
        Err(Failure::Field(field, reason)) => FromChild::Failed(truncate(format!("{field}: {reason}"))),
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
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("PR_SET_DUMPABLE"))?;
    let terminal = Terminal::wanted(process);
    if terminal.is_none() {
        set_stdio(stdio.each_ref().map(|fd| fd.as_fd()))?;
    }
    close_others(&mut [report.as_raw_fd(), request.init.1.as_raw_fd()]).map_err(at("closing descriptors"))?;
    set_affinity(process)?;
    set_scheduling(process)?;
    fs::write(
        "/proc/self/oom_score_adj",
        process.oom_score_adj().unwrap_or(0).to_string(),
    )
    .map_err(at("oom_score_adj"))?;
    limits::set_all(process)?;
    keyring::join(request.container_id).map_err(at("session keyring"))?;
    move_into_thread_name_spaces(request.init.1, namespaces(spec))
        .map_err(at("entering the container's namespaces"))?;
    rustix::process::setsid().map_err(at("setsid"))?;
    close_others(&mut [report.as_raw_fd()]).map_err(at("closing descriptors"))?;
    if let Some(terminal) = terminal {
        open_terminal(terminal, report, &FromChild::Terminal)?;
    }
    reopen_null().map_err(at("/dev/null"))?;
    become_user(process, spec, request.filter)?;
    let command = Command::find(process, request.find_home).map_err(Failure::Command)?;
    if process.no_new_privileges() == Some(true) {
        load_seccomp(request.filter)?;
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

/// CPU affinity.
fn set_affinity(process: &Process) -> Result<(), Failure> {
    let affinity = process.exec_cpu_affinity().as_ref();
    // `initial` applies until the process is in the container's cgroup; the child starts in it.
    let cpus = affinity.and_then(|affinity| {
        let lists = [affinity.cpu_affinity_final(), affinity.initial()];
        let list = lists.into_iter().flatten().find(|list| !list.is_empty());
        cpu_list::parse(list?)
    });
    let Some(cpus) = cpus else {
        return Ok(());
    };
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(at("execCPUAffinity"))
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
