//! VM exits of an exec: KVM's count of a running pod's VM before and after several.

use anyhow::{Context as _, Result};
use nacre_tests::guests::exits::Exits;

use crate::containers::{exec_true, id, pod};
use crate::origin;
use crate::results::Results;
use crate::runtimes::{Build, MeasuredRuntimes};

/// How many execs are counted.
const EXECS: u32 = 20;

/// Adds the exits of an exec of each build.
pub fn measure(runtimes: &MeasuredRuntimes, results: &mut Results) -> Result<()> {
    let note = format!("VM exits of ctr task exec true, mean of {EXECS}");
    results.add_each(runtimes, ("exec_exits", "", &note), exits)
}

fn exits(build: &Build) -> Result<Option<f64>> {
    let id = id(&format!("{}-exits", build.shim_runtime.name), 0);
    let running = origin::start(build, &id, "echo up; exec sleep 1000")?;
    let pid = pod(build, running.id())?["vmm_pid"].as_u64();
    let pid = u32::try_from(pid.with_context(|| format!("nacre ps names no VMM of {id}"))?)?;
    // The first exec reads the command's file.
    exec_true(&id, "exec-first")?;
    let before = Exits::of(pid)?;
    for number in 0..EXECS {
        exec_true(&id, &format!("exec-{number}"))?;
    }
    let after = Exits::of(pid)?;
    running.end()?;
    let (Some(before), Some(after)) = (before, after) else {
        return Ok(None);
    };
    let each = after.since(&before, EXECS);
    eprintln!("{}: an exec: {each}", build.shim_runtime.name);
    Ok(Some(each.total()))
}
