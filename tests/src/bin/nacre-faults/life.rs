//! A container's life by `ctr`, of which the first error is the outcome, and what an operator does then.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nacre_tests::containerd::ctr::{Output, Run, ctr};
use nacre_tests::containerd::ends::{remove, wait_for_end};
use nacre_tests::containerd::restart::Containerd;
use nacre_tests::leaks::{only_process, send_sigkill};

/// How long containerd may take to report an error or an end.
pub const LIMIT: Duration = Duration::from_secs(15);

/// How a life went on after the fault.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The first call that failed, or the one that reported the end.
    pub call: &'static str,
    /// What it said.
    pub text: String,
    /// How long it took.
    pub took: Duration,
}

/// Makes, uses and removes container `id`. containerd is started again if it was killed; if `kills_shim`, the shim is
/// killed when the container runs.
///
/// # Errors
/// If a call took longer than [`LIMIT`], or the container can't be removed.
pub fn live(id: &str, containerd: &Containerd, kills_shim: bool) -> Result<Outcome> {
    let mut outcome = match run_and_use(id, kills_shim)? {
        Some(failed) => Some(failed),
        None => call("kill", &["task", "kill", "-s", "SIGKILL", id])?.err(),
    };
    containerd.restart_if_killed()?;
    if outcome.is_some() {
        // Fails if the task has ended or was never made.
        ctr(["task", "kill", "-s", "SIGKILL", id])?;
    }
    let begun = Instant::now();
    wait_for_end(id, LIMIT)?;
    let ended = Outcome {
        call: "exit",
        text: "the task has ended".to_owned(),
        took: begun.elapsed(),
    };
    let deleted = call("delete", &["task", "delete", "--force", id])?;
    containerd.restart_if_killed()?;
    let outcome = outcome.take().or(deleted.err()).unwrap_or(ended);
    remove(id, LIMIT)?;
    containerd.restart_if_killed()?;
    Ok(outcome)
}

/// Creates, starts and uses the container; returns the first call that failed.
fn run_and_use(id: &str, kills_shim: bool) -> Result<Option<Outcome>> {
    let run = Run {
        command: &["sleep", "1000"],
        ..Run::default()
    };
    let begun = Instant::now();
    let ran = run.detached(id)?;
    if let Err(failed) = judge("run", ran, begun)? {
        return Ok(Some(failed));
    }
    if kills_shim {
        send_sigkill(only_process("containerd-shim-nacre")?)?;
    }
    Ok(call("exec", &["task", "exec", "--exec-id", "e", id, "true"])?.err())
}

fn call(name: &'static str, arguments: &[&str]) -> Result<Result<(), Outcome>> {
    let begun = Instant::now();
    judge(name, ctr(arguments.iter().copied())?, begun)
}

fn judge(call: &'static str, output: Output, begun: Instant) -> Result<Result<(), Outcome>> {
    let took = begun.elapsed();
    ensure!(took <= LIMIT, "{call} took {took:?}: {output:?}");
    if output.code == Some(0) {
        return Ok(Ok(()));
    }
    // A reason may be followed by the console's last lines.
    let errors = output.stderr.replace(": \n", ": ");
    let line = errors.lines().find(|line| line.starts_with("ctr: "));
    let text = line
        .unwrap_or(&errors)
        .trim_start_matches("ctr: ")
        .trim()
        .to_owned();
    ensure!(
        !text.is_empty() || call == "exec",
        "{call} failed without a reason: {output:?}"
    );
    Ok(Err(Outcome { call, text, took }))
}
