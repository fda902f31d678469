//! The pod's user namespace (`hostUsers: false` in Kubernetes), and the network, IPC and UTS namespaces that
//! belong to it, so that root in a container administers them as under other runtimes. The agent moves into
//! the latter: what it does for the pod (links, sysctls, host names, forwarded connections) is done there, and
//! containers inherit them. It stays in the guest's initial user namespace.
//!
//! The guest's initial network namespace is left to the kernel, which puts each new device there, and reports
//! devices other than links only there.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nacre_protocol::agent::IdRange;
use nix::sched::CloneFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::SharedInit;
use crate::error::Error;
use crate::loopback;
use crate::reaper::Reaper;

/// The network namespace of the agent's process.
const NETWORK: &str = "/proc/self/ns/net";

/// The guest's initial network namespace, once the agent has left it. A process has one, and so has this
/// program, whose only thread never starts another.
static INITIAL_NETWORK: OnceLock<OwnedFd> = OnceLock::new();

/// Makes the pod's user namespace with these id maps, and moves the agent into the namespaces that belong to
/// it. A second call has no effect.
///
/// # Errors
/// The kernel's reason, such as a map that it refuses.
pub fn enter_users(
    init: &SharedInit,
    reaper: &Reaper,
    uids: &[IdRange],
    gids: &[IdRange],
) -> Result<(), Error> {
    if INITIAL_NETWORK.get().is_some() {
        return Ok(());
    }
    let first = |ranges: &[IdRange]| ranges.first().map_or(0, |range| range.container);
    let others = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let pid = init.fork_with_users(reaper, others, (first(uids), first(gids)), |pid| {
        write_map(pid, "uid_map", uids)?;
        write_map(pid, "gid_map", gids)
    })?;
    enter_others(pid)
}

fn write_map(pid: Pid, file: &str, ranges: &[IdRange]) -> Result<(), Error> {
    let step = format!("setting the pod's {file} to {:?}", lines(ranges));
    let file = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    fs::write(file, lines(ranges)).map_err(Error::system(step))
}

/// `ranges` as user_namespaces(7) takes them.
fn lines(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.container, range.host, range.size);
    ranges.iter().map(line).collect()
}

/// Enters the network, IPC and UTS namespaces of process `pid`.
fn enter_others(pid: Pid) -> Result<(), Error> {
    let step = "entering the namespaces of the pod's user namespace";
    let initial = File::open(NETWORK).map_err(Error::file("opening", NETWORK))?;
    let holder = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::system(step))?;
    let namespaces = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    move_into_thread_name_spaces(holder.as_fd(), namespaces).map_err(Error::system(step))?;
    // It is set once: `enter_users` has checked that.
    let _ = INITIAL_NETWORK.set(initial.into());
    loopback::bring_up().map_err(Error::system("bringing the loopback device up"))
}

/// Calls `work` in the guest's initial network namespace, with that of the pod as its argument. None if they
/// are the same.
///
/// # Errors
/// If the agent can't change its network namespace.
pub fn in_initial_network<T>(work: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<Option<T>, Error> {
    let Some(initial) = INITIAL_NETWORK.get() else {
        return Ok(None);
    };
    let pod = File::open(NETWORK).map_err(Error::file("opening", NETWORK))?;
    let enter = |namespace: BorrowedFd<'_>| {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
            .map_err(Error::system("entering a network namespace"))
    };
    enter(initial.as_fd())?;
    let done = work(pod.as_fd());
    enter(pod.as_fd())?;
    Ok(Some(done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_a_line() {
        let range = |container, host, size| IdRange {
            container,
            host,
            size,
            ..IdRange::default()
        };
        assert_eq!(
            lines(&[range(0, 1000, 1), range(1, 5000, 10)]),
            "0 1000 1\n1 5000 10\n"
        );
    }
}
