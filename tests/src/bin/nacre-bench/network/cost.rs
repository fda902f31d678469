//! What traffic costs a VMM: VM exits, and what each of its threads does. Printed, for whoever wants to know why a
//! figure is what it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use nacre_tests::guests::exits::Exits;

use super::Peer;

/// Counts of a VMM's process.
pub struct Cost {
    exits: Option<Exits>,
    /// By the thread's name: system calls that read, that write, and how often it has slept.
    threads: BTreeMap<String, [f64; 3]>,
}

impl Cost {
    fn read(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let path = task.path();
            let name = fs::read_to_string(path.join("comm"))?.trim().to_owned();
            let own = [
                number(&path.join("io"), "syscr:"),
                number(&path.join("io"), "syscw:"),
                number(&path.join("status"), "voluntary_ctxt_switches:"),
            ];
            let sum: &mut [f64; 3] = threads.entry(name).or_default();
            sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        Ok(Self {
            exits: Exits::of(pid)?,
            threads,
        })
    }
}

/// The number after `key` in a file of /proc; 0 if there is none.
fn number(file: &Path, key: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or_default()
}

/// Carries out `traffic`, of `count` operations, and prints what each of them cost.
pub fn of<T>(peer: &Peer, what: &str, count: u32, traffic: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(pid) = peer.vmm else {
        return traffic();
    };
    let before = Cost::read(pid)?;
    let result = traffic()?;
    let after = Cost::read(pid)?;
    if let (Some(before), Some(after)) = (&before.exits, &after.exits) {
        eprintln!("    {}: {what}: {}", peer.name, after.since(before, count));
    }
    for (name, counts) in &after.threads {
        let earlier = before.threads.get(name).copied().unwrap_or_default();
        let each: Vec<f64> = counts
            .iter()
            .zip(earlier)
            .map(|(now, earlier)| (now - earlier) / f64::from(count))
            .collect();
        if each.iter().any(|each| *each >= 0.01) {
            let [reads, writes, sleeps] = [each[0], each[1], each[2]];
            eprintln!("        {name}: {reads:.2} reads, {writes:.2} writes, {sleeps:.2} sleeps");
        }
    }
    Ok(result)
}
