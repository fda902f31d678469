//! Memory of an idle pod and of Nacre's own processes for it.

use anyhow::{Context as _, Result, ensure};
use nacre_tests::memory;

use crate::containers::{Running, id, pod};
use crate::origin;
use crate::results::Results;
use crate::runtimes::{Build, MeasuredRuntimes};

const KIB: f64 = 1024.0;

/// Adds the memory of an idle pod, of a VMM and of a shim.
pub fn measure(runtimes: &MeasuredRuntimes, results: &mut Results) -> Result<()> {
    let note = "memory.current of an idle busybox pod's cgroup on the host: guest memory, VMM, kernel";
    results.add_each(runtimes, ("memory_idle", "MiB", note), |build| {
        let idle = idle(build, 1)?;
        let bytes = pod(build, idle.id())?["memory_bytes"].as_u64();
        idle.end()?;
        // None if the unified cgroup tree has no memory controller.
        Ok(bytes.map(|bytes| bytes as f64 / KIB / KIB))
    })?;
    let note = "nacre-vmm, private dirty without guest memory, the larger of two, after find / in the guest; wanted: at most 6 MiB";
    results.add_each(runtimes, ("vmm_private", "MiB", note), |build| {
        Ok(Some(vmm_kib(build)? as f64 / KIB))
    })?;
    let note = "the shim of an idle pod, private dirty";
    results.add_each(runtimes, ("shim_private", "MiB", note), |build| {
        let idle = idle(build, 2)?;
        let pid = pod(build, idle.id())?["shim_pid"].as_u64();
        let memory = memory::of(pid.context("nacre ps names no shim")?)?;
        idle.end()?;
        Ok(Some(memory.own_kib as f64 / KIB))
    })
}

fn idle(build: &Build, number: usize) -> Result<Running> {
    let id = id(&format!("{}-idle", build.shim_runtime.name), number);
    origin::start(build, &id, "echo up; exec sleep 1000")
}

/// KiB of private dirty memory of a VMM without its guest's: the larger of two that run at once and have each
/// served a walk over a whole file system.
fn vmm_kib(build: &Build) -> Result<u64> {
    eprintln!("memory of two VMMs after find / in their guests");
    let script = "find / >/dev/null 2>&1; echo done; exec sleep 1000";
    let start = |number| {
        let id = id(&format!("{}-find", build.shim_runtime.name), number);
        origin::start(build, &id, script)
    };
    let pods = [start(1)?, start(2)?];
    let mut most = 0;
    for running in &pods {
        let pid = pod(build, running.id())?["vmm_pid"].as_u64();
        let pid = pid.with_context(|| format!("nacre ps names no VMM of {}", running.id()))?;
        let memory = memory::of(pid)?;
        ensure!(
            memory.guests > 0,
            "VMM {pid} has no mapping that is large enough to be guest memory"
        );
        most = most.max(memory.own_kib);
    }
    for running in pods {
        running.end()?;
    }
    Ok(most)
}
