//! Removes what a pod left on the host after its shim died; reads `pod.json` and nothing else. Called by the
//! command `delete`, and by `start` if an earlier pod had the same name. May run twice, and before anything
//! was created.
//!
//! The kernel reuses pids, and all pods run the same two programs, so the recorded shim is killed only if its
//! start time is the recorded one, too. The VMM is never looked up by pid: every process in the pod's cgroup
//! is killed.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nacre_protocol::fault::{self, FaultPoint};
use nacre_protocol::state::{Pod, STATE_ROOT};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::{self, Cgroup};
use crate::identity::Identity;
use crate::{network, poststop, state, sys};

/// How long all killed processes together may take to exit; containerd gives `delete` 5 s.
const END_DEADLINE: Duration = Duration::from_secs(4);

/// Why a pod could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the pod's state.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The pod's cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The pod's network namespace.
    #[error("{0}")]
    Network(String),
    /// The poststop hooks could not be run.
    #[error("running poststop hooks: {0}")]
    Hooks(std::io::Error),
    /// The shim could not be killed.
    #[error("killing the shim, pid {pid}: {source}")]
    Kill {
        /// The shim's pid.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// The shim has not exited after SIGKILL.
    #[error("the shim, pid {pid}, has not exited {s} s after SIGKILL", s = END_DEADLINE.as_secs())]
    Stuck {
        /// The shim's pid.
        pid: u32,
    },
}

/// What [`clean_up`] found.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// The VMM's host pid; 0 if it is not known.
    pub vmm_pid: u32,
    /// Why `pod.json` could not be read, if so. The directory was removed all the same; a cgroup may be left.
    pub unreadable: Option<state::Error>,
}

/// Kills the pod's processes, removes its cgroup and what it has in its network namespace, runs the poststop hooks
/// that are due, and removes its directory.
///
/// # Errors
/// [`Error`]; the pod's directory then stays, so that the next call can finish the work.
pub fn clean_up(identity: &Identity) -> Result<Cleaned, Error> {
    let directory = identity.directory();
    if !directory.exists() {
        return Ok(Cleaned::default());
    }
    let (pod, unreadable) = match state::read_pod(&directory) {
        Ok(pod) => (pod, None),
        Err(error) => (None, Some(error)),
    };
    fault::reach(FaultPoint::CleanUpCalled);
    let vmm_pid = pod.as_ref().and_then(|pod| pod.vmm_pid).unwrap_or(0);
    if let Some(pod) = pod {
        kill_processes(&pod)?;
        if let Some(record) = &pod.network {
            network::release_blocking(record, &identity.key).map_err(Error::Network)?;
        }
    }
    fault::reach(FaultPoint::CleanUpKilled);
    poststop::run_left(&directory).map_err(Error::Hooks)?;
    state::remove_directory(&directory)?;
    Ok(Cleaned { vmm_pid, unreadable })
}

/// The containerd address that pod `id` was started with; empty if there is no such pod. The address is part
/// of a pod's key, and containerd 1.6 does not pass it to `delete`.
pub fn recorded_address(namespace: &str, id: &str) -> String {
    let pods = fs::read_dir(STATE_ROOT).into_iter().flatten().flatten();
    pods.filter_map(|entry| state::read_pod(&entry.path()).ok().flatten())
        .find(|pod| pod.id == id && pod.namespace == namespace)
        .map(|pod| pod.containerd_address)
        .unwrap_or_default()
}

fn kill_processes(pod: &Pod) -> Result<(), Error> {
    let deadline = Instant::now() + END_DEADLINE;
    let cgroup = pod.cgroup.as_deref().map(Cgroup::at).transpose()?;
    let shim = find_shim(pod);
    let killed = shim.as_ref().map_or(Ok(()), |shim| kill_shim(shim, pod.shim_pid));
    // The VM ends even if the shim can't be killed or hangs in the kernel. A shim with a pending SIGKILL runs
    // no code of its own any more, so it does not report the VM's end as a failure.
    if let Some(cgroup) = &cgroup {
        cgroup.kill()?;
    }
    let is_stuck = match &shim {
        Some(shim) => !sys::wait_readable(shim, deadline).unwrap_or(false),
        None => false,
    };
    if let Some(cgroup) = &cgroup {
        // Again: the shim may have been starting the VMM.
        cgroup.kill()?;
        cgroup.wait_until_empty(deadline)?;
        cgroup.remove()?;
    }
    killed?;
    if is_stuck {
        return Err(Error::Stuck { pid: pod.shim_pid });
    }
    Ok(())
}

fn kill_shim(shim: &OwnedFd, pid: u32) -> Result<(), Error> {
    match pidfd_send_signal(shim, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::Kill {
            pid,
            source: error.into(),
        }),
    }
}

/// The recorded shim, if the process with its pid was started when it was.
fn find_shim(pod: &Pod) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pod.shim_pid).ok()?)?;
    // A pidfd keeps naming the same process, so it is opened before the start time is compared.
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    pod.is_shim_running().then_some(process)
}

#[cfg(test)]
mod tests {
    use nacre_protocol::state::process_start_time;

    use super::*;
    use nacre_protocol::state::PodState;

    fn pod_of(shim_pid: u32, shim_start_time: Option<u64>) -> Pod {
        Pod {
            id: "a".into(),
            namespace: "n".into(),
            containerd_address: "/c".into(),
            bundle: "/".into(),
            shim_pid,
            shim_start_time,
            vmm_pid: None,
            size: None,
            silent_since: None,
            cgroup: None,
            network: None,
            created: 0,
            state: PodState::Running,
        }
    }

    #[test]
    fn another_process_with_the_recorded_pid_is_not_the_shim() {
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let started = process_start_time(other.id()).unwrap();
        assert!(find_shim(&pod_of(other.id(), Some(started))).is_some());
        for wrong in [Some(started.wrapping_add(1)), None] {
            assert!(find_shim(&pod_of(other.id(), wrong)).is_none());
            kill_processes(&pod_of(other.id(), wrong)).unwrap();
        }
        assert!(other.try_wait().unwrap().is_none(), "another process was killed");
        kill_processes(&pod_of(other.id(), Some(started))).unwrap();
        assert!(!other.wait().unwrap().success());
    }

    /// As a process that sleeps in the kernel for ever. The directory stands in for its cgroup.
    #[test]
    fn a_process_that_does_not_end_is_reported_before_containerd_gives_up() {
        let cgroup = tempfile::tempdir().unwrap();
        let events = cgroup.path().join("cgroup.events");
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        let pod = Pod {
            cgroup: Some(cgroup.path().to_owned()),
            ..pod_of(0, None)
        };
        let begun = Instant::now();
        let error = kill_processes(&pod).unwrap_err().to_string();
        let took = begun.elapsed();
        assert!(error.contains("a killed process in it has not exited"), "{error}");
        assert!(error.contains(&cgroup.path().display().to_string()), "{error}");
        assert!((END_DEADLINE..Duration::from_secs(5)).contains(&took), "{took:?}");
        assert_eq!(
            fs::read_to_string(cgroup.path().join("cgroup.kill")).unwrap(),
            "1"
        );
    }
}
