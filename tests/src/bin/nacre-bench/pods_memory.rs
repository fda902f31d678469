//! The memory that each more idle pod takes on the host. Pods are started one after the other; MemAvailable of the
//! host falls by what one takes, shared pages counted once. The memory of its processes says where it goes.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::memory;
use serde_json::Value;

use crate::containers::{Running, id, pods};
use crate::origin;
use crate::results::{Measure, Results};
use crate::runtimes::{Build, MeasuredRuntime, MeasuredRuntimes};
use crate::statistics::{median, slope, slope_error};

const KIB: f64 = 1024.0;
/// No pod is started if the host has less available memory, MiB: it must not run out of it.
const RESERVE_MIB: f64 = 400.0;
/// After how many pods the memory is read.
const STEP: usize = 5;
/// The fewest pods of a runtime: what else the host does changes its available memory, too, which more pods even out.
pub const FEWEST_PODS: usize = 20;

/// How the memory of the host has changed with the number of one runtime's pods.
pub struct Growth {
    /// The runtime's name.
    pub name: &'static str,
    /// The number of pods, and the memory that was available less than without pods, MiB.
    pub points: Vec<(f64, f64)>,
}

impl Growth {
    /// MiB that each pod after the first takes: the first one also brings what all share into memory.
    pub fn per_pod(&self) -> f64 {
        slope(&self.after_first())
    }

    fn after_first(&self) -> Vec<(f64, f64)> {
        let points = self.points.iter().copied();
        points.filter(|point| point.0 >= 1.0).collect()
    }

    /// How many pods there were, and the standard error of [`Growth::per_pod`].
    fn certainty(&self) -> String {
        format!(
            "{} pods, ± {:.2} MiB",
            self.pods(),
            slope_error(&self.after_first())
        )
    }

    /// The most pods that there were.
    pub fn pods(&self) -> f64 {
        self.points.iter().map(|point| point.0).fold(0.0, f64::max)
    }
}

/// Memory of the processes of one pod, or the medians of several, MiB.
#[derive(Debug, Clone, Copy)]
struct Processes {
    /// Proportional set size of VMM and shim: a page that N processes map counts as 1/N.
    pss: f64,
    /// Private dirty memory of the guest.
    guest: f64,
    /// Private dirty memory of the VMM without its guest's.
    vmm: f64,
    /// Private dirty memory of the shim.
    shim: f64,
}

/// Starts up to `count` idle pods under runc, under Nacre and under the other build, and adds the rows
/// `memory_per_pod…`. Returns what to plot.
///
/// # Errors
/// If a pod does not start, or the host has no memory for [`FEWEST_PODS`].
pub fn measure(runtimes: &MeasuredRuntimes, count: usize, results: &mut Results) -> Result<Vec<Growth>> {
    let (runc, ()) = grow(&runtimes.runc, count, |_| Ok(()))?;
    let mut growths = Vec::new();
    for build in runtimes.builds() {
        growths.push(grow_of(build, count)?);
    }
    let of = |name: &str| growths.iter().find(|(growth, _)| growth.name == name);
    // Before the last ones: they take most memory and time, and their failure must not lose these.
    if let Some(nacre) = of("nacre") {
        report(nacre, &runc, of("other"), results);
    }
    if runtimes.nacre.has_templates {
        let cold = grow_of(&runtimes.cold, count)?;
        let note = "the same with templates off";
        results.add(beside_runc("cold_memory_per_pod", &cold.0, &runc, note));
        growths.push(cold);
    }
    let plotted = growths.into_iter().map(|(growth, _)| growth);
    Ok(plotted.chain([runc]).collect())
}

/// As [`grow`], under a build of Nacre's, each of whose pods must have come from where it should.
fn grow_of(build: &Build, count: usize) -> Result<Pods> {
    let at_most = |running: &[Running]| {
        running
            .iter()
            .try_for_each(|running| origin::check(build, running.id()))?;
        processes(&pods(build)?)
    };
    let (growth, processes) = grow(&build.shim_runtime, count, at_most)?;
    eprintln!("pods of {}: {processes}", growth.name);
    Ok((growth, processes))
}

/// Starts up to `count` pods, reads the host's memory meanwhile, calls `at_most` when all run, and ends them.
fn grow<T>(
    shim_runtime: &MeasuredRuntime,
    count: usize,
    at_most: impl FnOnce(&[Running]) -> Result<T>,
) -> Result<(Growth, T)> {
    let name = shim_runtime.name;
    let without = available()?;
    let mut points = vec![(0.0, 0.0)];
    let mut running = Vec::with_capacity(count);
    let started = Instant::now();
    for number in 1..=count {
        if available()? < RESERVE_MIB {
            eprintln!(
                "pods of {name}: no more than {}, since memory ends",
                running.len()
            );
            break;
        }
        let id = id(&format!("{name}-many"), number);
        // Detached: a waiting ctr would take more memory than many a pod.
        running.push(Running::detached(shim_runtime, &[], &id, "exec sleep 1000000")?);
        if number == 1 || number % STEP == 0 || number == count {
            let taken = without - available()?;
            eprintln!(
                "pods of {name}: {number:3} take {taken:6.1} MiB, {:.0} s",
                started.elapsed().as_secs_f64()
            );
            points.push((number as f64, taken));
        }
    }
    ensure!(
        running.len() >= FEWEST_PODS,
        "the host has memory for {} pods of {name} only, and fewer than {FEWEST_PODS} say little",
        running.len()
    );
    let most = at_most(&running)?;
    for running in running {
        running.end()?;
    }
    Ok((Growth { name, points }, most))
}

/// MemAvailable, MiB, once the caches that nobody needs are dropped: the kernel counts only a part of those of
/// inodes and names.
fn available() -> Result<f64> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")?;
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    Ok(memory::field_kib(&text, "MemAvailable")? as f64 / KIB)
}

/// The medians of the memory of the processes of all `pods`, as `nacre ps` lists them.
fn processes(pods: &[Value]) -> Result<Processes> {
    let pids = pods
        .iter()
        .filter_map(|pod| Some((pod["vmm_pid"].as_u64()?, pod["shim_pid"].as_u64()?)));
    let mib = |kib: u64| kib as f64 / KIB;
    let each = pids.map(|(vmm, shim)| {
        let (of_vmm, of_shim) = (memory::of(vmm)?, memory::of(shim)?);
        Ok(Processes {
            pss: mib(memory::proportional_kib(vmm)? + memory::proportional_kib(shim)?),
            guest: mib(of_vmm.guests_kib),
            vmm: mib(of_vmm.own_kib),
            shim: mib(of_shim.own_kib),
        })
    });
    Ok(Processes::medians(&each.collect::<Result<Vec<_>>>()?))
}

impl Processes {
    fn medians(all: &[Self]) -> Self {
        let of = |pick: fn(&Self) -> f64| median(&all.iter().map(pick).collect::<Vec<f64>>());
        Self {
            pss: of(|one| one.pss),
            guest: of(|one| one.guest),
            vmm: of(|one| one.vmm),
            shim: of(|one| one.shim),
        }
    }
}

impl std::fmt::Display for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            pss,
            guest,
            vmm,
            shim,
        } = self;
        write!(
            f,
            "guest_private {guest:.2} MiB, vmm_private {vmm:.2} MiB, shim_private {shim:.2} MiB, PSS {pss:.2} MiB"
        )
    }
}

fn beside_runc(name: &str, growth: &Growth, runc: &Growth, note: &str) -> Measure {
    let (nacre, peer) = (growth.per_pod(), runc.per_pod());
    Measure {
        peer: Some(peer),
        peer_name: Some("runc".into()),
        ratio: Some(nacre / peer),
        note: format!("{note}; {}, runc: {}", growth.certainty(), runc.certainty()),
        ..Measure::alone(name, "MiB", nacre, "")
    }
}

/// A build's pods: how they have changed the host's memory, and the medians of their processes'.
type Pods = (Growth, Processes);

/// Adds a row of the host's memory, one of the processes', and their parts.
fn report(nacre: &Pods, runc: &Growth, other: Option<&Pods>, results: &mut Results) {
    type Pick = fn(&Pods) -> f64;
    let note = "MemAvailable of the host that each idle busybox pod after the first takes, slope";
    let row = beside_runc("memory_per_pod", &nacre.0, runc, note);
    results.add(row.beside(other.map(|other| other.0.per_pod())));
    let rows: [(&str, Pick, &str); 5] = [
        (
            "memory_per_pod_pss",
            |pods| pods.1.pss,
            "proportional set size of VMM and shim",
        ),
        (
            "memory_per_pod: guest_private",
            |pods| pods.1.guest,
            "private dirty memory of the guest",
        ),
        (
            "memory_per_pod: vmm_private",
            |pods| pods.1.vmm,
            "private dirty memory of the VMM without the guest's",
        ),
        (
            "memory_per_pod: shim_private",
            |pods| pods.1.shim,
            "private dirty memory of the shim",
        ),
        (
            "memory_per_pod: not in processes",
            |pods| pods.0.per_pod() - pods.1.pss,
            "memory_per_pod less memory_per_pod_pss: the kernel's own, KVM's, containerd's",
        ),
    ];
    for (name, pick, note) in rows {
        let note = format!("{note}; median of {} pods", nacre.0.pods());
        results.add(Measure::alone(name, "MiB", pick(nacre), note).beside(other.map(pick)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(name: &'static str, first: f64, each: f64) -> Growth {
        let more = [1.0, 5.0, 10.0].map(|pods| (pods, first + each * pods));
        let points = [&[(0.0, 0.0)], &more[..]].concat();
        Growth { name, points }
    }

    #[test]
    fn what_only_the_first_pod_takes_is_not_in_the_slope() {
        let growth = growth("nacre", 80.0, 12.5);
        assert!((growth.per_pod() - 12.5).abs() < 1e-9 && (growth.pods() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn the_rest_is_what_no_process_has() {
        let processes = [10.0, 30.0, 20.0].map(|pss| Processes {
            pss,
            guest: 9.0,
            vmm: 1.0,
            shim: 2.0,
        });
        let processes = Processes::medians(&processes);
        let mut results = Results::default();
        let (nacre, runc) = (growth("nacre", 80.0, 24.0), growth("runc", 5.0, 6.0));
        let other = (growth("other", 80.0, 48.0), processes);
        report(&(nacre, processes), &runc, Some(&other), &mut results);
        let near = |name: &str, expected: f64| {
            let row = results.0.iter().find(|row| row.name == name).unwrap();
            assert!((row.nacre - expected).abs() < 1e-9, "{row:?}");
        };
        near("memory_per_pod", 24.0);
        near("memory_per_pod_pss", 20.0);
        near("memory_per_pod: guest_private", 9.0);
        near("memory_per_pod: not in processes", 4.0);
        let row = &results.0[0];
        assert!(
            row.note
                .ends_with("slope; 10 pods, ± 0.00 MiB, runc: 10 pods, ± 0.00 MiB"),
            "{row:?}"
        );
        assert!((row.ratio.unwrap() - 4.0).abs() < 1e-9 && (row.other_ratio.unwrap() - 0.5).abs() < 1e-9);
    }
}
