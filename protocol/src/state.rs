//! The files of a pod in /run/nacre. The shim writes them, `containerd-shim-nacre-v2 delete` cleans up what
//! they name, and `nacre ps` and `nacre inspect` show them.
//!
//! ```text
//! /run/nacre/
//!   <pod key>/              one directory per pod, removed with the pod
//!     pod.json              Pod: what to clean up, written before it is created
//!     timeline.json         Timeline
//!     poststop/             the hooks that are due when a container is deleted
//!     files/                /etc/hosts and others of a pod of the Sandbox API
//!     shim.sock             the shim's ttrpc socket, or a symbolic link to it
//!   templates/            snapshots of booted guests (pod/src/template)
//!   failures/<pod key>.json Failure: outlives its pod; the newest MAX_FAILURES are kept
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The directory of all state.
pub const STATE_ROOT: &str = "/run/nacre";
/// In [`STATE_ROOT`]: the directory of failure records.
pub const FAILURES_DIR: &str = "failures";
/// In [`STATE_ROOT`]: the directory of templates.
pub const TEMPLATES_DIR: &str = "templates";
/// Most failure records that are kept.
pub const MAX_FAILURES: usize = 64;
/// In a pod's directory: [`Pod`].
pub const POD_FILE: &str = "pod.json";
/// In a pod's directory: [`Timeline`].
pub const TIMELINE_FILE: &str = "timeline.json";
/// In a pod's directory: the socket that containerd talks to.
pub const SOCKET_FILE: &str = "shim.sock";

/// The name of a pod's directory: 16 hex digits, an FNV-1a hash of containerd's address, the namespace and
/// the sandbox's id. Two daemons may use the same id, and a hash is short: the path of a socket has at most
/// 107 bytes. FNV-1a is the same in every build.
#[must_use]
pub fn pod_key(containerd_address: &str, namespace: &str, id: &str) -> String {
    hashed_name(&[containerd_address, namespace, id])
}

/// 16 hex digits: an FNV-1a hash of `parts`.
#[must_use]
pub fn hashed_name(parts: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
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

/// What a pod has on the host.
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
    /// When the shim's process was started, clock ticks since the host's boot (field 22 of /proc/PID/stat,
    /// proc(5)). With the pid it identifies the process: pids are used again.
    #[serde(default)]
    pub shim_start_time: Option<u64>,
    /// The VMM's host pid, once it has been started.
    pub vmm_pid: Option<u32>,
    /// The pod's cgroup, an absolute path in the cgroup2 file system.
    pub cgroup: Option<PathBuf>,
    /// The network namespace whose links are tied to the VM's; written before anything in it is changed.
    #[serde(default)]
    pub network: Option<NetworkNamespace>,
    /// The size of its VM.
    #[serde(default)]
    pub size: Option<PodSize>,
    /// Since when the guest's agent does not answer, seconds since the epoch; None if it does.
    #[serde(default)]
    pub silent_since: Option<u64>,
    /// Seconds since the epoch.
    pub created: u64,
    /// How far the pod's life has come.
    pub state: PodState,
}

/// A network namespace of the host. The path may lead to another one later, so the file identifies it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkNamespace {
    /// Where it was found.
    pub path: PathBuf,
    /// The device number of its file.
    pub device: u64,
    /// The inode number of its file.
    pub inode: u64,
    /// Its links are being tied, or a child was killed while it tied them: an ingress qdisc may have no filter
    /// yet that names the pod.
    #[serde(default)]
    pub is_tying: bool,
}

/// The size of a pod's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSize {
    /// vCPUs that are online.
    pub vcpus: u8,
    /// The most vCPUs.
    pub max_vcpus: u8,
    /// Memory at boot, MiB.
    pub boot_mib: u32,
    /// Memory that the guest has, as far as it was reported, MiB.
    pub memory_mib: u32,
    /// The most memory, MiB.
    pub max_mib: u32,
}

/// How far a pod's life has come, as in `pod.json`: "creating", "running" or "stopped".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// The guest's agent has not answered yet.
    Creating,
    /// The guest's agent is ready.
    Running,
    /// The VM has ended; the shim still serves the state of its tasks.
    Stopped,
}

impl std::fmt::Display for PodState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

impl Pod {
    /// Whether the recorded shim still runs: a process with its pid that was started when it was.
    #[must_use]
    pub fn is_shim_running(&self) -> bool {
        let started = process_start_time(self.shim_pid);
        started.is_some() && started == self.shim_start_time
    }
}

/// When process `pid` was started, in clock ticks since the host's boot: field 22 of /proc/PID/stat
/// (proc(5)). None if there is no such process.
#[must_use]
pub fn process_start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the program's name in parentheses, may contain anything; field 3 follows its last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
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
    /// Where the guest came from: a template, or a boot and why.
    #[serde(default)]
    pub origin: Option<String>,
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
    fn a_process_keeps_its_start_time() {
        let own = process_start_time(std::process::id()).unwrap();
        assert_eq!(process_start_time(std::process::id()), Some(own));
        let init = process_start_time(1).unwrap();
        assert!(init <= own, "{init} {own}");
        assert_eq!(process_start_time(u32::MAX), None);
    }

    #[test]
    fn a_state_has_one_name_on_disk_and_in_text() {
        for state in [PodState::Creating, PodState::Running, PodState::Stopped] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        }
    }

    #[test]
    fn pods_of_two_daemons_or_namespaces_have_different_keys() {
        let key = pod_key("/run/containerd/containerd.sock", "default", "a");
        assert_eq!(key.len(), 16);
        assert_ne!(key, pod_key("/run/other.sock", "default", "a"));
        assert_ne!(key, pod_key("/run/containerd/containerd.sock", "k8s.io", "a"));
        assert_ne!(pod_key("a", "bc", ""), pod_key("ab", "c", ""));
    }
}
