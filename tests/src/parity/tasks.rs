//! Behaviours of calls of the Task service other than Create and Exec: Kill, Pids, State, Pause, Update,
//! Stats.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

use super::process::keep_words;
use super::{Behaviour, Outcome, calls};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, shared_directory};
use crate::containerd::ctr::{
    DEADLINE, Foreground, Run, ctr, fresh_id, remove_detached, wait_readable, wait_until_stopped,
};
use crate::containerd::task;

pub const BEHAVIOURS: &[Behaviour] = &[
    calls("kill: SIGKILL gives exit code 137", &["Task.Kill"], |runtime| {
        kill_shell(runtime, "SIGKILL")
    }),
    calls("kill: a signal with a handler", &["Task.Kill"], |runtime| {
        kill_shell(runtime, "SIGTERM")
    }),
    calls(
        "kill: PID 1 ignores a signal without a handler",
        &["Task.Kill"],
        |runtime| kill_shell(runtime, "SIGUSR1"),
    ),
    calls("kill: a task that has exited", &["Task.Kill"], kill_exited),
    calls("kill: all processes", &["Task.Kill"], kill_all),
    calls(
        "kill: an invalid signal number",
        &["Task.Kill"],
        kill_invalid_signal,
    ),
    calls("number of processes", &["Task.Pids"], number_of_processes).allow_difference(
        "Pids lists what callers started, init and exec processes, with the VMM's PID: their children have no \
         PID on the host, and `docker top` would show other processes of the host for those of the guest",
        "2 lines",
    ),
    calls("create, then start", &["Task.Create", "Task.Start"], create_start),
    calls(
        "a running task can't be started or deleted",
        &["Task.Start", "Task.Delete"],
        start_or_delete_running,
    ),
    calls(
        "task states: running, paused, stopped",
        &["Task.State", "Task.Pause", "Task.Resume"],
        states,
    ),
    calls(
        "pause stops and resume continues all processes",
        &["Task.Pause", "Task.Resume"],
        pause,
    ),
    calls(
        "pause: a paused task can be killed",
        &["Task.Pause", "Task.Kill"],
        kill_paused,
    ),
    calls("update: memory, CPU and pids limits", &["Task.Update"], update),
    calls(
        "update: raise, then lower a limit",
        &["Task.Update"],
        update_up_and_down,
    ),
    calls(
        "update: other limits are kept",
        &["Task.Update"],
        update_one_limit,
    ),
    calls("metrics: limits and usage", &["Task.Stats"], metrics),
];

/// Sends `signal` to a container that handles only SIGTERM, then SIGTERM if the signal was SIGUSR1.
fn kill_shell(runtime: Runtime, signal: &str) -> Result<Outcome> {
    let script = "trap 'echo handled; exit 43' TERM; echo up; while :; do sleep 0.1; done";
    let mut running = spawn(runtime, script)?;
    let up = running.line()?;
    running.kill(signal)?;
    if signal == "SIGUSR1" {
        running.kill("SIGTERM")?;
    }
    let mut outcome = Outcome::from(running.wait_with_output()?);
    outcome.stdout.insert_str(0, &up);
    Ok(outcome)
}

/// Starts `sh -c script` in a new container with pipes for its standard streams.
pub fn spawn(runtime: Runtime, script: &str) -> Result<Foreground> {
    Run {
        command: &["sh", "-c", script],
        runtime,
        ..Run::default()
    }
    .spawn(&fresh_id("task"))
}

/// Runs `check` with the id of a detached container that runs `command`, then removes the container.
pub fn with_detached(
    runtime: Runtime,
    command: &[&str],
    check: impl FnOnce(&str) -> Result<Outcome>,
) -> Result<Outcome> {
    let run = Run {
        command,
        runtime,
        ..Run::default()
    };
    with_container(&run, check)
}

/// Runs `check` with the id of a detached container that `run` starts, then removes the container. The id in
/// standard error is replaced by `ID`.
pub fn with_container(run: &Run<'_>, check: impl FnOnce(&str) -> Result<Outcome>) -> Result<Outcome> {
    let id = fresh_id("task");
    run.detach(&id)?;
    let outcome = check(&id);
    remove_detached(&id)?;
    let mut outcome = outcome?;
    outcome.stderr = outcome.stderr.replace(&id, "ID");
    Ok(outcome)
}

/// A command that runs until it is killed.
pub const SLEEP: &[&str] = &["sleep", "1000000"];

/// Sends SIGKILL to the first process of container `id`.
pub fn kill_container(id: &str) -> Result<()> {
    ctr(["task", "kill", "-s", "SIGKILL", id])?.success().map(drop)
}

fn kill_exited(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, &["true"], |id| {
        wait_until_stopped(id)?;
        Ok(keep_words(
            ctr(["task", "kill", id])?.into(),
            &["process already finished"],
        ))
    })
}

fn kill_all(runtime: Runtime) -> Result<Outcome> {
    let script = "exec 2>/dev/null; trap 'echo parent' TERM; sh -c \"trap 'echo child; exit' TERM; echo up; while :; do sleep 0.1; done\"; echo end; exit 6";
    let mut running = spawn(runtime, script)?;
    let up = running.line()?;
    ctr(["task", "kill", "--all", "-s", "SIGTERM", &running.id])?.success()?;
    let mut outcome = Outcome::from(running.wait_with_output()?);
    outcome.stdout.insert_str(0, &up);
    Ok(outcome)
}

fn kill_invalid_signal(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        Ok(keep_words(
            ctr(["task", "kill", "-s", "99", id])?.into(),
            // The text of the error differs between versions of containerd.
            &[],
        ))
    })
}

fn number_of_processes(runtime: Runtime) -> Result<Outcome> {
    let command = ["sh", "-c", "sleep 1000 & sleep 1000 & wait"];
    with_detached(runtime, &command, |id| {
        ctr(["task", "exec", "--exec-id", "x", id, "true"])?.success()?;
        let listed = ctr(["task", "ps", id])?.success()?;
        Ok(Outcome::text(format!("{} lines", listed.lines().count())))
    })
}

fn create_start(runtime: Runtime) -> Result<Outcome> {
    let id = fresh_id("create");
    let bundle = Bundle::new(&["sh", "-c", "echo started; exit 3"], |_| ())?;
    let config = bundle.config()?.display().to_string();
    ctr([
        "containers",
        "create",
        "--runtime",
        runtime.name(),
        "--config",
        &config,
        &id,
    ])?
    .success()?;
    let output = ctr(["task", "start", &id])?;
    ctr(["containers", "delete", &id])?.success()?;
    Ok(output.into())
}

fn start_or_delete_running(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        let started: Outcome = keep_words(ctr(["task", "start", id])?.into(), &["already exists"]);
        let deleted: Outcome = keep_words(ctr(["task", "delete", id])?.into(), &["failed precondition"]);
        Ok(Outcome::text(format!("{started:?} {deleted:?} {}", state(id)?)))
    })
}

/// The state of task `id` in `ctr task list`.
pub fn state(id: &str) -> Result<&'static str> {
    let listed = ctr(["task", "list"])?.success()?;
    let line = listed
        .lines()
        .find(|line| line.starts_with(id))
        .context("the task is not listed")?;
    let known = ["RUNNING", "PAUSED", "STOPPED", "CREATED"];
    known
        .into_iter()
        .find(|state| line.contains(state))
        .with_context(|| line.to_owned())
}

fn states(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        let mut all = vec![state(id)?];
        ctr(["task", "pause", id])?.success()?;
        all.push(state(id)?);
        ctr(["task", "resume", id])?.success()?;
        all.push(state(id)?);
        kill_container(id)?;
        wait_until_stopped(id)?;
        all.push(state(id)?);
        Ok(Outcome::text(all.join(" ")))
    })
}

/// Runs `check` with the id of a container that writes ever higher numbers to a file of the host, and with
/// that file's directory.
fn with_counter(runtime: Runtime, check: impl FnOnce(&str, &Path) -> Result<Outcome>) -> Result<Outcome> {
    let script = "i=0; while :; do i=$((i+1)); echo $i > /data/count; sleep 0.05; done";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let source = shared_directory(spec);
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(
                json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}),
            );
        }
    })?;
    let run = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    };
    with_container(&run, |id| check(id, &bundle.shared_directory()))
}

/// Whether a file in `directory` is written to within `time`.
fn written(directory: &Path, time: Duration) -> Result<bool> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(directory, AddWatchFlags::IN_MODIFY)?;
    Ok(wait_readable(&inotify, Instant::now() + time).is_ok())
}

fn pause(runtime: Runtime) -> Result<Outcome> {
    with_counter(runtime, |id, directory| {
        let mut all = vec![written(directory, DEADLINE)?];
        ctr(["task", "pause", id])?.success()?;
        all.push(written(directory, Duration::from_secs(2))?);
        ctr(["task", "resume", id])?.success()?;
        all.push(written(directory, DEADLINE)?);
        Ok(Outcome::text(format!("{all:?}")))
    })
}

fn kill_paused(runtime: Runtime) -> Result<Outcome> {
    let mut running = spawn(runtime, "echo up; while :; do sleep 0.1; done")?;
    running.line()?;
    ctr(["task", "pause", &running.id])?.success()?;
    running.kill("SIGKILL")?;
    Ok(running.wait_with_output()?.into())
}

/// Calls Update with `resources`, as Kubernetes does for a running container.
fn call_update(id: &str, resources: &Value) -> Result<()> {
    let mut request = UpdateTaskRequest::new();
    request.set_id(id.to_owned());
    request.set_resources(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
        value: resources.to_string().into_bytes(),
        ..Any::default()
    });
    let answer: Result<Empty, ttrpc::Status> = task::call(id, "Update", &request)?;
    answer
        .map(drop)
        .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
}

/// Prints the limits that [`updated`] compares.
const PRINT_LIMITS: &str = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.max pids.max";

/// Applies each of `updates` to a container that was created with limits; prints its limits after each of
/// them.
fn updated(runtime: Runtime, updates: &[Value]) -> Result<Outcome> {
    let bundle = Bundle::new(SLEEP, |spec| {
        (super::specs::LIMITS.change)(spec);
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 67_108_864, "reservation": 16_777_216},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}, "pids": {"limit": 50}
        });
    })?;
    let run = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    };
    with_container(&run, |id| {
        let mut all = Outcome::default();
        for (number, resources) in updates.iter().enumerate() {
            call_update(id, resources)?;
            let name = format!("x{number}");
            all.stdout +=
                &ctr(["task", "exec", "--exec-id", &name, id, "sh", "-c", PRINT_LIMITS])?.success()?;
        }
        Ok(all)
    })
}

fn update(runtime: Runtime) -> Result<Outcome> {
    updated(
        runtime,
        &[json!({
            "memory": {"limit": 33_554_432, "reservation": 8_388_608},
            "cpu": {"shares": 1024, "quota": 20_000, "period": 50_000}, "pids": {"limit": 9}
        })],
    )
}

fn update_up_and_down(runtime: Runtime) -> Result<Outcome> {
    updated(
        runtime,
        &[
            json!({"memory": {"limit": 134_217_728}}),
            json!({"memory": {"limit": 50_331_648}}),
        ],
    )
}

fn update_one_limit(runtime: Runtime) -> Result<Outcome> {
    updated(runtime, &[json!({"cpu": {"quota": 30_000, "period": 100_000}})])
}

/// Prints the values of `ctr task metrics` that are the same in each run, and whether the others are
/// plausible.
fn metrics(runtime: Runtime) -> Result<Outcome> {
    let bundle = Bundle::new(SLEEP, |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
    })?;
    let run = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    };
    with_container(&run, |id| {
        let text = ctr(["task", "metrics", "--format", "json", id])?.success()?;
        let metrics: Value = serde_json::from_str(&text)?;
        let used = metrics["memory"]["usage"].as_u64().unwrap_or_default();
        let stdout = format!(
            "{} {} {} {} {}",
            metrics["pids"],
            metrics["memory"]["usage_limit"],
            used > 0 && used < 67_108_864,
            metrics["cpu"]["usage_usec"].as_u64() > Some(0),
            metrics["memory"]["swap_limit"],
        );
        Ok(Outcome::text(stdout))
    })
}
