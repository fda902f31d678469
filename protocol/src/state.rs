//! What a pod leaves on disk for others to read: the shim writes it, `containerd-shim-nacre-v2 delete` cleans up by
//! it, `nacre ps` and `nacre inspect` show it.
//!
//! ```text
//! /run/nacre/
//!   <pod key>/              one directory a pod, gone with it
//!     pod.json              Pod: what is to be cleaned, written before it is made
//!     timeline.json         Timeline
//!     shim.sock             the shim's ttrpc socket
//!   failures/<pod key>.json Failure: kept after the pod is gone, the newest MAX_FAILURES of them
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where all state is.
pub const STATE_ROOT: &str = "/run/nacre";
/// In [`STATE_ROOT`]: the failure records.
pub const FAILURES_DIR: &str = "failures";
/// How many failure records are kept.
pub const MAX_FAILURES: usize = 64;
/// In a pod's directory: [`Pod`].
pub const POD_FILE: &str = "pod.json";
/// In a pod's directory: [`Timeline`].
pub const TIMELINE_FILE: &str = "timeline.json";
/// In a pod's directory: the socket that containerd talks to.
pub const SOCKET_FILE: &str = "shim.sock";

/// Names a pod's directory: 16 hex digits from containerd's address, the namespace and the sandbox's id, since two
/// daemons may use the same id and a socket's path has 107 bytes at most (FNV-1a, so that every build agrees).
#[must_use]
pub fn pod_key(containerd_address: &str, namespace: &str, id: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in [containerd_address, namespace, id] {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// The directory of the pod with `key`.
#[must_use]
pub fn pod_dir(key: &str) -> PathBuf {
    Path::new(STATE_ROOT).join(key)
}

/// The failure record of the pod with `key`.
#[must_use]
pub fn failure_file(key: &str) -> PathBuf {
    Path::new(STATE_ROOT)
        .join(FAILURES_DIR)
        .join(format!("{key}.json"))
}

/// What a pod owns on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// The sandbox's id, as containerd knows it.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC address.
    pub containerd_address: String,
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// The shim's host pid.
    pub shim_pid: u32,
    /// When the shim's process was started, clock ticks since the host's boot (field 22 of /proc/PID/stat, proc(5)).
    /// With the pid it identifies the process: pids are used again.
    #[serde(default)]
    pub shim_start_time: Option<u64>,
    /// The VMM's host pid, once it has been started.
    pub vmm_pid: Option<u32>,
    /// The pod's cgroup, an absolute path in the cgroup2 file system.
    pub cgroup: Option<PathBuf>,
    /// Seconds since the epoch.
    pub created: u64,
    /// A word: creating, running, stopped.
    pub state: String,
}

/// How a pod started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The steps in order.
    pub steps: Vec<TimelineStep>,
    /// VM exits by kind from the guest's first instruction until its agent was ready.
    pub boot_exits: BTreeMap<String, u64>,
    /// `uname -r` of the guest.
    pub guest_kernel: Option<String>,
}

/// A step of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStep {
    /// What was done.
    pub name: String,
    /// When it was done: microseconds since containerd executed the shim.
    pub done_us: u64,
}

/// Why a pod failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The sandbox's id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Seconds since the epoch.
    pub time: u64,
    /// The step that failed, such as `boot guest`, or `running`.
    pub step: String,
    /// What happened, with its causes.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
    /// The start, as far as it came.
    pub timeline: Timeline,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_two_daemons_or_namespaces_have_different_keys() {
        let key = pod_key("/run/containerd/containerd.sock", "default", "a");
        assert_eq!(key.len(), 16);
        assert_ne!(key, pod_key("/run/other.sock", "default", "a"));
        assert_ne!(key, pod_key("/run/containerd/containerd.sock", "k8s.io", "a"));
        assert_ne!(pod_key("a", "bc", ""), pod_key("ab", "c", ""));
    }
}
