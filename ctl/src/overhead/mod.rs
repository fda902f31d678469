//! `nacre overhead`: measures on the running pods of this host what a pod takes besides its containers, for the
//! `overhead` of a Kubernetes RuntimeClass. Reads counters of the kernel and of the shims; changes nothing.

mod counters;
mod shim;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use nacre_protocol::state::{Pod, PodState};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::json;

use self::counters::Counters;
use crate::pods;
use crate::ps::unreadable_lines;
use crate::text::{bytes, table};

/// Memory in the RuntimeClass is a multiple of this, bytes.
const MEMORY_STEP: u64 = 8 << 20;

/// Arguments of `nacre overhead`.
#[derive(Args)]
pub struct Options {
    /// How long to measure CPU time, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What one pod takes besides its containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Overhead {
    /// Host memory, bytes.
    memory: u64,
    /// CPU time in thousandths of a CPU, rounded up.
    millicpus: u64,
}

/// A measured pod.
struct Measured {
    id: String,
    at_end: Counters,
    overhead: Overhead,
}

/// Measures all running pods.
///
/// # Errors
/// If the state directory can't be listed, or no pod can be measured.
pub fn run(root: &Path, options: &Options) -> Result<String> {
    let listing = pods::all(root)?;
    let running: Vec<&Pod> = listing
        .entries
        .iter()
        .map(|found| &found.pod)
        .filter(|pod| pod.state == PodState::Running && pod.is_shim_running())
        .collect();
    ensure!(
        !running.is_empty(),
        "no pod is running; start some that do nothing, and run `nacre overhead` again"
    );
    let begin: Vec<_> = running.iter().map(|pod| counters::read(root, pod)).collect();
    wait(options.seconds)?;
    let mut failed = unreadable_lines(&listing.unreadable);
    let mut measured = Vec::new();
    for (pod, begin) in running.into_iter().zip(begin) {
        match begin.and_then(|begin| Ok((begin, counters::read(root, pod)?))) {
            Ok((begin, at_end)) => measured.push(Measured {
                id: pod.id.clone(),
                overhead: overhead(begin, at_end, options.seconds),
                at_end,
            }),
            Err(error) => writeln!(failed, "cannot measure {}: {error:#}", pod.id)?,
        }
    }
    ensure!(
        !measured.is_empty(),
        "no pod can be measured\n{}",
        failed.trim_end()
    );
    Ok(if options.json {
        as_json(&measured)
    } else {
        as_text(&measured, options.seconds) + &failed
    })
}

fn wait(seconds: u32) -> Result<()> {
    let time = Timespec::try_from(Duration::from_secs(seconds.into()))?;
    poll(&mut [] as &mut [PollFd<'_>], Some(&time))?;
    Ok(())
}

/// What a pod took besides its containers between two readings.
fn overhead(begin: Counters, end: Counters, seconds: u32) -> Overhead {
    let shim = |figure: u64| if end.shim_in_cgroup { 0 } else { figure };
    let memory = end.pod_memory.saturating_add(shim(end.shim_memory));
    let used = |counters: Counters| {
        let all = counters.pod_cpu_usec.saturating_add(shim(counters.shim_cpu_usec));
        all.saturating_sub(counters.containers_cpu_usec)
    };
    let usec = used(end).saturating_sub(used(begin));
    Overhead {
        memory: memory.saturating_sub(end.containers_memory),
        millicpus: usec.div_ceil(1000 * u64::from(seconds).max(1)),
    }
}

/// The largest overhead, in round figures.
fn pod_fixed(measured: &[Measured]) -> Overhead {
    let most = |of: fn(&Overhead) -> u64| measured.iter().map(|pod| of(&pod.overhead)).max().unwrap_or(0);
    Overhead {
        memory: most(|overhead| overhead.memory).div_ceil(MEMORY_STEP) * MEMORY_STEP,
        millicpus: most(|overhead| overhead.millicpus).max(1),
    }
}

fn as_json(measured: &[Measured]) -> String {
    let pods: Vec<_> = measured
        .iter()
        .map(|pod| {
            let (counters, overhead) = (&pod.at_end, &pod.overhead);
            json!({
                "id": pod.id, "vm_bytes": counters.pod_memory, "shim_bytes": counters.shim_memory,
                "containers_bytes": counters.containers_memory, "overhead_bytes": overhead.memory,
                "overhead_millicpus": overhead.millicpus,
            })
        })
        .collect();
    let fixed = pod_fixed(measured);
    let value = json!({
        "pods": pods,
        "pod_fixed": {"memory_bytes": fixed.memory, "millicpus": fixed.millicpus},
    });
    format!("{value:#}\n")
}

fn as_text(measured: &[Measured], seconds: u32) -> String {
    let heading = ["ID", "VM", "SHIM", "CONTAINERS", "OVERHEAD", "CPU"].map(String::from);
    let mut rows = vec![heading.to_vec()];
    rows.extend(measured.iter().map(|pod| {
        let counters = &pod.at_end;
        vec![
            pod.id.clone(),
            bytes(counters.pod_memory),
            bytes(counters.shim_memory),
            bytes(counters.containers_memory),
            bytes(pod.overhead.memory),
            format!("{} m", pod.overhead.millicpus),
        ]
    }));
    let fixed = pod_fixed(measured);
    format!(
        "{}\n\
         # VM: memory of the pod's cgroup on this host; of a Kubernetes pod the shim is in it, too. SHIM: the\n\
         # shim's share of its pages. CONTAINERS: what the guest counts for them. CPU: of the VM and the shim less\n\
         # that of the containers, over {seconds} s.\n\
         # podFixed has the largest of {} running pod(s); memory that a guest has freed is still in it for 2 s.\n\
         apiVersion: node.k8s.io/v1\n\
         kind: RuntimeClass\n\
         metadata:\n  name: nacre\n\
         handler: nacre\n\
         overhead:\n  podFixed:\n    memory: {}Mi\n    cpu: {}m\n",
        table(&rows),
        measured.len(),
        fixed.memory >> 20,
        fixed.millicpus,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: Counters = Counters {
        pod_memory: 70 << 20,
        shim_memory: 2 << 20,
        shim_in_cgroup: false,
        containers_memory: 10 << 20,
        pod_cpu_usec: 5_000_000,
        shim_cpu_usec: 100_000,
        containers_cpu_usec: 1_000_000,
    };

    fn measured(id: &str, memory: u64, millicpus: u64) -> Measured {
        Measured {
            id: id.to_owned(),
            at_end: BEGIN,
            overhead: Overhead { memory, millicpus },
        }
    }

    #[test]
    fn what_the_containers_use_is_no_overhead() {
        let end = Counters {
            pod_cpu_usec: 7_050_000,
            shim_cpu_usec: 110_001,
            containers_cpu_usec: 3_000_000,
            ..BEGIN
        };
        let want = Overhead {
            memory: 62 << 20,
            millicpus: 7,
        };
        assert_eq!(overhead(BEGIN, end, 10), want);
        // The pod's cgroup has the shim's part.
        let inside = Counters {
            shim_in_cgroup: true,
            ..end
        };
        let want = Overhead {
            memory: 60 << 20,
            millicpus: 5,
        };
        assert_eq!(overhead(BEGIN, inside, 10), want);
        // A guest may report anything.
        let lies = Counters {
            containers_memory: u64::MAX,
            containers_cpu_usec: u64::MAX,
            ..BEGIN
        };
        assert_eq!(overhead(BEGIN, lies, 10), Overhead::default());
    }

    #[test]
    fn the_runtime_class_has_the_largest_of_all_pods_rounded_up() {
        let pods = [measured("a", (62 << 20) + 1, 0), measured("b", 50 << 20, 3)];
        let want = Overhead {
            memory: 64 << 20,
            millicpus: 3,
        };
        assert_eq!(pod_fixed(&pods), want);
        let text = as_text(&pods, 10);
        assert!(text.contains("    memory: 64Mi\n    cpu: 3m\n"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&as_json(&pods)).unwrap();
        assert_eq!(value["pods"][1]["overhead_bytes"], 50 << 20);
        assert_eq!(value["pod_fixed"]["memory_bytes"], 64 << 20);
    }
}
