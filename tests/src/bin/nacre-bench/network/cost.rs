//! What traffic costs a VMM: VM exits, and what each of its threads does. Printed, for whoever wants to know why a
//! figure is what it is.

use std::collections::BTreeMap;

use anyhow::Result;
use nacre_tests::guests::exits::Exits;
use nacre_tests::guests::threads::{self, Counts};

use super::Peer;

/// Counts of a VMM's process.
pub struct Cost {
    exits: Option<Exits>,
    /// By the thread's name.
    threads: BTreeMap<String, Counts>,
}

impl Cost {
    fn read(pid: u32) -> Result<Self> {
        Ok(Self {
            exits: Exits::of(pid)?,
            threads: threads::counts(pid)?,
        })
    }
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
            .map(|(now, earlier)| now.saturating_sub(earlier) as f64 / f64::from(count))
            .collect();
        if each.iter().any(|each| *each >= 0.01) {
            let [reads, writes, sleeps] = [each[0], each[1], each[2]];
            eprintln!("        {name}: {reads:.2} reads, {writes:.2} writes, {sleeps:.2} sleeps");
        }
    }
    Ok(result)
}
