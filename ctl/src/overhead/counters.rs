//! What is counted of one pod: by this host's kernel for its cgroup and its shim, and by the guest's kernel for
//! its containers, as the shim answers it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nacre_protocol::proc_cgroup::cgroup2_path;
use nacre_protocol::state::{Pod, SOCKET_FILE, pod_key};

use super::shim;
use crate::process_memory::keyed;

/// The counters of a pod. Memory is in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// memory.current of the pod's cgroup: the VMM with the guest's memory, and the shim if it is in it.
    pub pod_memory: u64,
    /// The shim's proportional share of its pages (Pss).
    pub shim_memory: u64,
    /// Whether the pod's cgroup counts the shim.
    pub shim_in_cgroup: bool,
    /// What the containers use, as the guest counts it.
    pub containers_memory: u64,
    /// CPU time of the pod's cgroup.
    pub pod_cpu_usec: u64,
    /// CPU time of the shim.
    pub shim_cpu_usec: u64,
    /// CPU time of the containers, as the guest counts it.
    pub containers_cpu_usec: u64,
}

/// Reads the counters of `pod`, whose directory is in `root`.
pub fn read(root: &Path, pod: &Pod) -> Result<Counters> {
    let cgroup = pod.cgroup.as_ref().context("it has no cgroup")?;
    let key = pod_key(&pod.containerd_address, &pod.namespace, &pod.id);
    let containers = shim::usage(&root.join(key).join(SOCKET_FILE), &pod.id)?;
    let process = Path::new("/proc").join(pod.shim_pid.to_string());
    let pss = keyed(&text(&process.join("smaps_rollup"))?, "Pss:");
    Ok(Counters {
        pod_memory: text(&cgroup.join("memory.current"))?.trim().parse()?,
        shim_memory: pss.context("smaps_rollup has no Pss")?.saturating_mul(1024),
        shim_in_cgroup: is_in(&text(&process.join("cgroup"))?, cgroup),
        containers_memory: containers.memory,
        pod_cpu_usec: keyed(&text(&cgroup.join("cpu.stat"))?, "usage_usec")
            .context("cpu.stat has no usage_usec")?,
        shim_cpu_usec: cpu_usec(&text(&process.join("schedstat"))?)
            .context("schedstat is no list of numbers")?,
        containers_cpu_usec: containers.cpu_usec,
    })
}

fn text(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Whether a process is in the cgroup whose directory is `directory`, by the text of its /proc/PID/cgroup.
fn is_in(proc_cgroup: &str, directory: &Path) -> bool {
    cgroup2_path(proc_cgroup).is_some_and(|path| !path.is_empty() && directory.ends_with(path))
}

/// The CPU time of a process with one thread, by its schedstat (Documentation/scheduler/sched-stats.rst): the
/// first number, in nanoseconds.
fn cpu_usec(schedstat: &str) -> Option<u64> {
    let nanoseconds: u64 = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_key() {
        let rollup =
            "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:    9 kB\nPss:      2048 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(keyed(rollup, "Pss:"), Some(2048));
        assert_eq!(keyed("usage_usec 12\nuser_usec 5\n", "usage_usec"), Some(12));
        assert_eq!(keyed("usage_usec\n", "usage_usec"), None);
        assert_eq!(cpu_usec("5123456 7 9\n"), Some(5123));
        assert_eq!(cpu_usec(""), None);
    }

    #[test]
    fn a_process_is_in_the_pod_s_cgroup_or_not() {
        let pod = Path::new("/sys/fs/cgroup/kubepods/pod1/nacre-k");
        for (text, want) in [
            ("0::/kubepods/pod1/nacre-k\n", true),
            ("5:memory:/x\n0::/kubepods/pod1/nacre-k\n", true),
            ("0::/system.slice/containerd.service\n", false),
            ("0::/kubepods/pod1\n", false),
            ("0::/\n", false),
            ("", false),
        ] {
            assert_eq!(is_in(text, pod), want, "{text}");
        }
    }
}
