//! A pod with one container by containerd's CRI, beside runc: from the call RunPodSandbox until the container's
//! first output. Only in a lab with CRI (`tests/lab/run --cri`).

use std::time::Instant;

use anyhow::{Context as _, Result};
use nacre_tests::containerd::Runtime;
use nacre_tests::cri::node::{Node, prepare_cgroup};
use serde_json::Value;

use crate::origin;
use crate::results::{Measure, Results};
use crate::runtimes::Build;

/// The row of a build with templates and that of one without, each with the largest ratio to runc that is wanted.
const WARM: (&str, f64) = ("crirun", 0.9);
const COLD: (&str, f64) = ("cold_crirun", 1.9);

/// Runs `count` pods under runc and `build`, the installed one, in turns, and adds a row. Only the installed build is a
/// handler of containerd's CRI, so [`COLD`] needs a run of its own.
///
/// # Errors
/// If containerd has no CRI or a pod fails.
pub fn measure(build: &Build, count: usize, results: &mut Results) -> Result<()> {
    prepare_cgroup()?;
    let nodes = [
        Node::new(Runtime::Nacre, "nacre")?,
        Node::new(Runtime::Runc, "runc")?,
    ];
    let mut rounds = Vec::with_capacity(count);
    // The first round warms up.
    for number in 0..=count {
        let mut seconds = [0.0; 2];
        for turn in 0..2 {
            let index = (number + turn) % 2;
            let name = &nodes[index].handler;
            let build = (nodes[index].runtime == Runtime::Nacre).then_some(build);
            seconds[index] = run(&nodes[index], build).with_context(|| format!("a pod under {name}"))?;
        }
        if number > 0 {
            let [nacre, runc] = seconds;
            eprintln!(
                "pod {number:2} of {count}: nacre {:6.0} ms, runc {:6.0} ms, ratio {:.2}",
                nacre * 1e3,
                runc * 1e3,
                nacre / runc
            );
            rounds.push((nacre, runc));
        }
    }
    let each = |pick: fn(&(f64, f64)) -> f64| -> Vec<f64> { rounds.iter().map(pick).collect() };
    let (nacre, runc) = (each(|round| round.0 * 1e3), each(|round| round.1 * 1e3));
    let (name, wanted) = if build.has_templates { WARM } else { COLD };
    let note =
        format!("RunPodSandbox to the container's first output, with a network; wanted: at most {wanted}");
    let row = (name, "ms", note.as_str());
    results.add(Measure::of_rounds(row, &nacre, ("runc", &runc)));
    Ok(())
}

/// Seconds from the pod's first call to the container's first output. Checks where the guest came from if the pod is
/// one of `build`.
fn run(node: &Node, build: Option<&Build>) -> Result<f64> {
    let started = Instant::now();
    let pod = node.pod(Value::Null)?;
    let container = pod.start("echo up; exec sleep 1000000", Value::Null)?;
    container.prints("up")?;
    let seconds = started.elapsed().as_secs_f64();
    build.map_or(Ok(()), |build| origin::check(build, &pod.id))?;
    pod.remove()?;
    Ok(seconds)
}
