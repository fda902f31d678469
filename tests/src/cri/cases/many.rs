//! Many pods: one after the other, and at once.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cri::node::Node;
use crate::cri::{Case, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[
    calls("many: 5 pods at once", |node| at_once(node, 5)),
    calls("many: 10 pods at once", |node| at_once(node, 10)).long(),
    calls("many: 30 pods, one after the other, and no growth", thirty).long(),
];

fn at_once(node: &Node, count: usize) -> Result<Outcome> {
    let seen: Result<Vec<String>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|_| {
                let (runtime, handler) = (node.runtime, node.handler.clone());
                scope.spawn(move || -> Result<String> {
                    let node = Node::new(runtime, &handler)?;
                    let pod = node.pod(Value::Null)?;
                    let script = "ping -c 1 10.88.0.1 >/dev/null && echo reached";
                    let outcome = pod.run(script, Value::Null)?;
                    pod.remove()?;
                    Ok(outcome.stdout)
                })
            })
            .collect();
        let ended = running
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread panicked")?);
        ended.collect()
    });
    Ok(Outcome::text(seen?.concat()))
}

fn thirty(node: &Node) -> Result<Outcome> {
    let mut used = Vec::new();
    for number in 0..30 {
        let pod = node.pod(Value::Null)?;
        let outcome = pod.run("echo ran", Value::Null)?;
        ensure!(outcome.stdout == "ran\n", "pod {number}: {outcome}");
        pod.remove()?;
        used.push(kernel_memory()?);
    }
    // The first pods fill caches; after that what the kernel cannot give back must not grow with each pod.
    let (early, late) = (used.get(9).context("no pods")?, used.last().context("no pods")?);
    let grown = late.saturating_sub(*early);
    ensure!(
        grown < 20 * 512,
        "{grown} KiB more of the kernel's own memory after 20 pods: {used:?}"
    );
    Ok(Outcome::text("30 pods"))
}

/// KiB of memory that the kernel uses for itself and can't reclaim.
fn kernel_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    Ok(line
        .context("no SUnreclaim")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?)
}
