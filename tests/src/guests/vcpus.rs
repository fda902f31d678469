//! Guests with several vCPUs: every vCPU works, and the guest sees one package with as many cores as vCPUs,
//! each with its own L1 and L2 caches, and one L3 cache that all share.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::vm::DEADLINE;
use super::workload::Parameters;
use super::{Build, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[
    test("1 vCPU", |build| boot_with(build, 1, 1)),
    test("2 vCPUs: one package, private L1 and L2, shared L3", |build| {
        boot_with(build, 2, 2)
    }),
    test("4 vCPUs: one package, private L1 and L2, shared L3", |build| {
        boot_with(build, 4, 4)
    }),
    test("8 vCPUs: one package, private L1 and L2, shared L3", |build| {
        boot_with(build, 8, 8)
    }),
    test("1 vCPU at boot, 3 more later", |build| boot_with(build, 1, 4)),
];

/// Reports the topology and what each CPU computed.
pub const WORKLOAD: Workload = Workload {
    name: "vcpus",
    run: report,
};

const CPUS: &str = "/sys/devices/system/cpu";
/// Steps of each CPU's computation.
const STEPS: u64 = 200_000;

/// What the guest sees of one CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cpu {
    number: usize,
    package: i64,
    core: i64,
    caches: Vec<Cache>,
    /// The result of the CPU's computation.
    checksum: u64,
    /// The CPU that a thread bound to this one ran on.
    ran_on: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cache {
    level: u8,
    shared_by: BTreeSet<usize>,
}

/// Boots a guest with `vcpus` CPUs online, which brings the others up to `max_vcpus` online itself.
fn boot_with(build: &Build, vcpus: usize, max_vcpus: usize) -> Result<()> {
    let (vcpus, max) = (vcpus.to_string(), max_vcpus.to_string());
    let mut arguments = vec!["--vcpus", &vcpus];
    if vcpus != max {
        arguments.extend(["--max-vcpus", &max]);
    }
    let guest = build.boot(&Options {
        workload: WORKLOAD.name,
        parameters: &[("online", &vcpus)],
        arguments: &arguments,
        ..Options::default()
    })?;
    let report = guest.finish(DEADLINE)?;
    let cpus: Vec<Cpu> = serde_json::from_value(report).context("parsing the report")?;
    check(&cpus, max_vcpus).with_context(|| format!("{cpus:?}"))
}

/// Fails unless `cpus` are `expected` working cores of one package with the caches that the guest should see.
fn check(cpus: &[Cpu], expected: usize) -> Result<()> {
    let online: BTreeSet<usize> = cpus.iter().map(|cpu| cpu.number).collect();
    ensure!(
        online.len() == expected,
        "expected {expected} CPUs, got {}",
        online.len()
    );
    let packages: BTreeSet<i64> = cpus.iter().map(|cpu| cpu.package).collect();
    ensure!(packages.len() == 1, "expected one package, got {packages:?}");
    let cores: BTreeSet<i64> = cpus.iter().map(|cpu| cpu.core).collect();
    ensure!(
        cores.len() == expected,
        "expected {expected} cores, got {cores:?}"
    );
    for cpu in cpus {
        let number = cpu.number;
        ensure!(
            cpu.ran_on == number,
            "CPU {number}'s thread ran on {}",
            cpu.ran_on
        );
        ensure!(
            cpu.checksum == checksum(),
            "CPU {number} computed {:x}",
            cpu.checksum
        );
        for cache in &cpu.caches {
            let sharers = if cache.level == 3 {
                online.clone()
            } else {
                [number].into()
            };
            ensure!(
                cache.shared_by == sharers,
                "L{} of CPU {number} is shared by {:?}, expected {sharers:?}",
                cache.level,
                cache.shared_by
            );
        }
        let levels: BTreeSet<u8> = cpu.caches.iter().map(|cache| cache.level).collect();
        ensure!(
            levels == [1, 2, 3].into(),
            "CPU {number} has caches of the levels {levels:?}"
        );
    }
    Ok(())
}

/// FNV-1a over the first [`STEPS`] numbers.
fn checksum() -> u64 {
    (0..STEPS).fold(0xcbf2_9ce4_8422_2325, |hash, number| {
        (hash ^ number).wrapping_mul(0x0100_0000_01b3)
    })
}

fn report(parameters: &Parameters) -> Result<Value> {
    let at_boot = parse_list(&read(&Path::new(CPUS).join("online"))?)?;
    ensure!(
        at_boot.len() == parameters.get::<usize>("online")?,
        "the CPUs {at_boot:?} are online at boot"
    );
    for number in parse_list(&read(&Path::new(CPUS).join("present"))?)?.difference(&at_boot) {
        let file = Path::new(CPUS).join(format!("cpu{number}/online"));
        fs::write(&file, "1").with_context(|| format!("writing {}", file.display()))?;
    }
    let online = parse_list(&read(&Path::new(CPUS).join("online"))?)?;
    // All at once: a vCPU that does not run holds up its own thread only.
    let threads: Vec<_> = online
        .into_iter()
        .map(|number| std::thread::spawn(move || describe(number)))
        .collect();
    let mut cpus = Vec::new();
    for thread in threads {
        cpus.push(
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??,
        );
    }
    Ok(serde_json::to_value(cpus)?)
}

/// Computes on CPU `number` and reads its part of sysfs.
fn describe(number: usize) -> Result<Cpu> {
    let mut only = CpuSet::new();
    only.set(number);
    sched_setaffinity(None, &only).with_context(|| format!("binding a thread to CPU {number}"))?;
    let checksum = checksum();
    let ran_on = sched_getcpu();
    let directory = Path::new(CPUS).join(format!("cpu{number}"));
    Ok(Cpu {
        number,
        package: read(&directory.join("topology/physical_package_id"))?.parse()?,
        core: read(&directory.join("topology/core_id"))?.parse()?,
        caches: caches(&directory.join("cache"))?,
        checksum,
        ran_on,
    })
}

fn caches(directory: &Path) -> Result<Vec<Cache>> {
    let mut caches = Vec::new();
    if !directory.exists() {
        return Ok(caches);
    }
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        if path.join("level").exists() {
            caches.push(Cache {
                level: read(&path.join("level"))?.parse()?,
                shared_by: parse_list(&read(&path.join("shared_cpu_list"))?)?,
            });
        }
    }
    Ok(caches)
}

fn read(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// The CPUs in a list such as `0-2,5`.
fn parse_list(list: &str) -> Result<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |number: &str| -> Result<usize> {
            number
                .parse()
                .with_context(|| format!("the list of CPUs {list:?}"))
        };
        cpus.extend(parse(first)?..=parse(last)?);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four CPUs as they should be, changed by `change`.
    fn four(change: impl Fn(&mut Cpu)) -> Vec<Cpu> {
        let cache = |level, shared_by: &[usize]| Cache {
            level,
            shared_by: shared_by.iter().copied().collect(),
        };
        (0..4)
            .map(|number| {
                let mut cpu = Cpu {
                    number,
                    package: 0,
                    core: number.try_into().unwrap(),
                    caches: vec![
                        cache(1, &[number]),
                        cache(1, &[number]),
                        cache(2, &[number]),
                        cache(3, &[0, 1, 2, 3]),
                    ],
                    checksum: checksum(),
                    ran_on: number,
                };
                change(&mut cpu);
                cpu
            })
            .collect()
    }

    #[test]
    fn each_fault_of_a_topology_is_found() {
        check(&four(|_| {}), 4).unwrap();
        let fault = |change: fn(&mut Cpu)| check(&four(change), 4).unwrap_err().to_string();
        assert!(
            check(&four(|_| {})[..3], 4)
                .unwrap_err()
                .to_string()
                .contains("got 3")
        );
        assert!(fault(|cpu| cpu.package = cpu.core).contains("one package"));
        assert!(fault(|cpu| cpu.core /= 2).contains("4 cores"));
        assert!(fault(|cpu| cpu.caches[3].shared_by = [cpu.number].into()).contains("L3 of CPU 0"));
        assert!(fault(|cpu| cpu.caches[2].shared_by = [0, 1, 2, 3].into()).contains("L2 of CPU 0"));
        assert!(fault(|cpu| cpu.caches.truncate(3)).contains("levels {1, 2}"));
        assert!(fault(|cpu| cpu.ran_on = 0).contains("ran on 0"));
        assert!(fault(|cpu| cpu.checksum ^= 1).contains("computed"));
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-2,5").unwrap(), [0, 1, 2, 5].into());
        assert_eq!(parse_list("").unwrap(), BTreeSet::new());
        assert!(parse_list("0-x").is_err());
    }
}
