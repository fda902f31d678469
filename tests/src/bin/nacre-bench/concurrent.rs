//! Many containers at once: `ctr run --rm` for each, all started together, until the last one has ended. Each must
//! succeed. Nacre and runc take turns.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::containers::{id, run_true_at_once};
use crate::origin::Kinds;
use crate::results::{Measure, Results};
use crate::runtimes::{MeasuredRuntime, MeasuredRuntimes};

/// Runs `at_once` containers under each runtime in `count` rounds, and adds the row `concurrent` with that number.
/// One container of each warms up, so that all files are in memory.
///
/// # Errors
/// If a container fails.
pub fn measure(
    runtimes: &MeasuredRuntimes,
    at_once: usize,
    count: usize,
    results: &mut Results,
) -> Result<()> {
    let peers = [&runtimes.nacre.shim_runtime, &runtimes.runc];
    let kinds = Kinds::prepare([&runtimes.nacre], &[])?;
    for peer in peers {
        run(peer, 1, 0)?;
    }
    let mut milliseconds = [Vec::with_capacity(count), Vec::with_capacity(count)];
    for number in 1..=count {
        for turn in 0..peers.len() {
            let index = (number + turn) % peers.len();
            let taken = run(peers[index], at_once, number)?;
            eprintln!(
                "{at_once} at once, {number} of {count}: {} {taken:.0} ms",
                peers[index].name
            );
            milliseconds[index].push(taken);
        }
    }
    kinds.verify()?;
    let [nacre, runc] = milliseconds;
    let note = format!("{at_once} times ctr run --rm busybox true, started at once, until all have ended");
    let name = format!("concurrent{at_once}");
    results.add(Measure::of_rounds((&name, "ms", &note), &nacre, ("runc", &runc)));
    Ok(())
}

/// Milliseconds until `at_once` containers have ended.
fn run(shim_runtime: &MeasuredRuntime, at_once: usize, round: usize) -> Result<f64> {
    let name = shim_runtime.name;
    let ids: Vec<String> = (0..at_once)
        .map(|number| id(&format!("{name}-of-{at_once}-{round}"), number))
        .collect();
    let started = Instant::now();
    run_true_at_once(shim_runtime, &ids).with_context(|| format!("{at_once} containers under {name}"))?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}
