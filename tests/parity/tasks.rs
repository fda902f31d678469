//! Several calls of the Task service in a row.

use anyhow::Result;

use super::process::words;
use super::{Behaviour, Seen, calls};
use crate::containerd::Runtime;
use crate::containerd::ctr::{Run, ctr, fresh_id, remove_detached, wait_until_stopped};

pub const BEHAVIOURS: &[Behaviour] = &[
    calls("kill: 137", &["Task.Kill"], |runtime| killed(runtime, "SIGKILL")),
    calls("kill: a signal that has a handler", &["Task.Kill"], |runtime| {
        killed(runtime, "SIGTERM")
    }),
    calls(
        "kill: a first process ignores what it does not handle",
        &["Task.Kill"],
        |runtime| killed(runtime, "SIGUSR1"),
    ),
    calls("kill: a task that has ended", &["Task.Kill"], kill_ended),
    calls("an exec after the end is refused", &["Task.Exec"], exec_after_end),
    calls("processes are counted", &["Task.Pids"], processes),
];

/// A container that counts and handles SIGTERM; SIGUSR1 is followed by SIGTERM.
fn killed(runtime: Runtime, signal: &str) -> Result<Seen> {
    let script = "trap 'echo handled; exit 43' TERM; echo up; while :; do sleep 0.1; done";
    let run = Run {
        command: &["sh", "-c", script],
        runtime,
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("kill"))?;
    let up = running.line()?;
    running.kill(signal)?;
    if signal == "SIGUSR1" {
        running.kill("SIGTERM")?;
    }
    let mut seen = Seen::from(running.finish()?);
    seen.stdout.insert_str(0, &up);
    Ok(seen)
}

/// A container in the background for the time of `look`.
fn with_detached(
    runtime: Runtime,
    command: &[&str],
    look: impl FnOnce(&str) -> Result<Seen>,
) -> Result<Seen> {
    let id = fresh_id("task");
    Run {
        command,
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    let seen = look(&id);
    remove_detached(&id)?;
    let mut seen = seen?;
    seen.stderr = seen.stderr.replace(&id, "ID");
    Ok(seen)
}

fn end(id: &str) -> Result<()> {
    ctr(["task", "kill", "-s", "SIGKILL", id])?.success()?;
    Ok(())
}

fn kill_ended(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, &["true"], |id| {
        wait_until_stopped(id)?;
        Ok(words(
            ctr(["task", "kill", id])?.into(),
            &["not found", "process already finished"],
        ))
    })
}

fn exec_after_end(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, &["sleep", "1000"], |id| {
        end(id)?;
        wait_until_stopped(id)?;
        Ok(words(
            ctr(["task", "exec", "--exec-id", "x", id, "true"])?.into(),
            &["stopped", "not running"],
        ))
    })
}

fn processes(runtime: Runtime) -> Result<Seen> {
    let command = ["sh", "-c", "sleep 1000 & sleep 1000 & wait"];
    with_detached(runtime, &command, |id| {
        ctr(["task", "exec", "--exec-id", "x", id, "true"])?.success()?;
        let listed = ctr(["task", "ps", id])?.success()?;
        Ok(Seen::text(format!("{} lines", listed.lines().count())))
    })
}
