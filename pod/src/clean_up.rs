//! Removes what a pod left on the host after its shim died, from `pod.json` alone. Called by the command `delete`, and by
//! `start` when an earlier pod had the same name. May run twice, and before anything was made.
//!
//! Pids are used again, and all pods run the same two programs, so the recorded shim is killed only if its start time is
//! the recorded one, too. The VMM is never looked up by pid: it is whatever runs in the pod's cgroup.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nacre_protocol::state::{Pod, STATE_ROOT};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::{self, Cgroup};
use crate::identity::Identity;
use crate::{state, sys};

/// How long killed processes may take to end, all together; containerd gives `delete` 5 s.
const END_DEADLINE: Duration = Duration::from_secs(4);

/// What could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the pod's state.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The pod's cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The shim could not be killed.
    #[error("killing the shim, pid {pid}: {source}")]
    Kill {
        /// The shim's pid.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// The shim was killed and is still there.
    #[error("the shim, pid {pid}, has not ended {s} s after SIGKILL", s = END_DEADLINE.as_secs())]
    Stuck {
        /// The shim's pid.
        pid: u32,
    },
}

/// What was found.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// The VMM's host pid; 0 if it is not known.
    pub vmm_pid: u32,
    /// Why `pod.json` could not be read, if so. The directory was removed all the same; a cgroup may be left.
    pub unreadable: Option<state::Error>,
}

/// Ends what still runs of the pod and removes what is left of it.
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
    let vmm_pid = pod.as_ref().and_then(|pod| pod.vmm_pid).unwrap_or(0);
    if let Some(pod) = pod {
        end(&pod)?;
    }
    state::remove_directory(&directory)?;
    Ok(Cleaned { vmm_pid, unreadable })
}

/// The containerd address that pod `id` was started with; containerd 1.6 does not pass it to `delete`, and pods are named
/// by it. Empty if there is no such pod.
pub fn recorded_address(namespace: &str, id: &str) -> String {
    let pods = fs::read_dir(STATE_ROOT).into_iter().flatten().flatten();
    pods.filter_map(|entry| state::read_pod(&entry.path()).ok().flatten())
        .find(|pod| pod.id == id && pod.namespace == namespace)
        .map(|pod| pod.containerd_address)
        .unwrap_or_default()
}

fn end(pod: &Pod) -> Result<(), Error> {
    let deadline = Instant::now() + END_DEADLINE;
    // The shim first, or it would report the VMM's end as a failure.
    if let Some(shim) = find_shim(pod) {
        let failed = |source| Error::Kill {
            pid: pod.shim_pid,
            source,
        };
        match pidfd_send_signal(&shim, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(failed(error.into())),
        }
        if !sys::wait_readable(&shim, deadline).map_err(failed)? {
            return Err(Error::Stuck { pid: pod.shim_pid });
        }
    }
    let Some(path) = &pod.cgroup else { return Ok(()) };
    let cgroup = Cgroup::at(path)?;
    cgroup.kill()?;
    cgroup.wait_until_empty(deadline)?;
    Ok(cgroup.remove()?)
}

/// The recorded shim, if the process with its pid was started when it was.
fn find_shim(pod: &Pod) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pod.shim_pid).ok()?)?;
    // Opened before the look at its start time: from then on the pid can't become another process's.
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let started = sys::start_time(pod.shim_pid)?;
    (pod.shim_start_time == Some(started)).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_of(shim_pid: u32, shim_start_time: Option<u64>) -> Pod {
        Pod {
            id: "a".into(),
            namespace: "n".into(),
            containerd_address: "/c".into(),
            bundle: "/".into(),
            shim_pid,
            shim_start_time,
            vmm_pid: None,
            cgroup: None,
            created: 0,
            state: "running".into(),
        }
    }

    #[test]
    fn another_process_with_the_recorded_pid_is_not_the_shim() {
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let started = sys::start_time(other.id()).unwrap();
        assert!(find_shim(&pod_of(other.id(), Some(started))).is_some());
        for wrong in [Some(started.wrapping_add(1)), None] {
            assert!(find_shim(&pod_of(other.id(), wrong)).is_none());
            end(&pod_of(other.id(), wrong)).unwrap();
        }
        assert!(other.try_wait().unwrap().is_none(), "a neighbour was killed");
        end(&pod_of(other.id(), Some(started))).unwrap();
        assert!(!other.wait().unwrap().success());
    }
}
