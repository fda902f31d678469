//! Several calls of the Task service in a row.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

use super::process::words;
use super::{Behaviour, Seen, calls};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, shared};
use crate::containerd::ctr::{
    DEADLINE, Foreground, Run, ctr, fresh_id, remove_detached, wait_readable, wait_until_stopped,
};
use crate::containerd::task;

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
    calls("kill: all processes", &["Task.Kill"], kill_all),
    calls(
        "kill: a signal that does not exist",
        &["Task.Kill"],
        kill_nonsense,
    ),
    calls("processes are counted", &["Task.Pids"], processes),
    calls("create, then start", &["Task.Create", "Task.Start"], create_start),
    calls(
        "a task that runs can't be started or deleted",
        &["Task.Start", "Task.Delete"],
        twice,
    ),
    calls(
        "the state of a task: running, paused, stopped",
        &["Task.State", "Task.Pause", "Task.Resume"],
        states,
    ),
    calls(
        "pause: nothing goes on, resume: it does",
        &["Task.Pause", "Task.Resume"],
        pause,
    ),
    calls(
        "pause: it can be killed",
        &["Task.Pause", "Task.Kill"],
        kill_paused,
    ),
    calls("update: memory, CPU and processes", &["Task.Update"], update),
    calls("update: more, then less", &["Task.Update"], update_twice),
    calls("update: what is not named stays", &["Task.Update"], update_one),
    calls("metrics: what is told", &["Task.Stats"], metrics),
];

/// A container that counts and handles SIGTERM; SIGUSR1 is followed by SIGTERM.
fn killed(runtime: Runtime, signal: &str) -> Result<Seen> {
    let script = "trap 'echo handled; exit 43' TERM; echo up; while :; do sleep 0.1; done";
    let mut running = spawn(runtime, script)?;
    let up = running.line()?;
    running.kill(signal)?;
    if signal == "SIGUSR1" {
        running.kill("SIGTERM")?;
    }
    let mut seen = Seen::from(running.finish()?);
    seen.stdout.insert_str(0, &up);
    Ok(seen)
}

pub fn spawn(runtime: Runtime, script: &str) -> Result<Foreground> {
    Run {
        command: &["sh", "-c", script],
        runtime,
        ..Run::default()
    }
    .spawn(&fresh_id("task"))
}

/// A container in the background for the time of `look`.
pub fn with_detached(
    runtime: Runtime,
    command: &[&str],
    look: impl FnOnce(&str) -> Result<Seen>,
) -> Result<Seen> {
    let run = Run {
        command,
        runtime,
        ..Run::default()
    };
    observed(&run, look)
}

/// What `look` sees of a container that `run` starts.
pub fn observed(run: &Run<'_>, look: impl FnOnce(&str) -> Result<Seen>) -> Result<Seen> {
    let id = fresh_id("task");
    run.detach(&id)?;
    looked_at(&id, look)
}

pub fn looked_at(id: &str, look: impl FnOnce(&str) -> Result<Seen>) -> Result<Seen> {
    let seen = look(id);
    remove_detached(id)?;
    let mut seen = seen?;
    seen.stderr = seen.stderr.replace(id, "ID");
    Ok(seen)
}

pub const SLEEP: &[&str] = &["sleep", "1000000"];

pub fn end(id: &str) -> Result<()> {
    ctr(["task", "kill", "-s", "SIGKILL", id])?.success().map(drop)
}

fn kill_ended(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, &["true"], |id| {
        wait_until_stopped(id)?;
        Ok(words(
            ctr(["task", "kill", id])?.into(),
            &["process already finished"],
        ))
    })
}

fn kill_all(runtime: Runtime) -> Result<Seen> {
    let script = "exec 2>/dev/null; trap 'echo parent' TERM; sh -c \"trap 'echo child; exit' TERM; echo up; while :; do sleep 0.1; done\"; echo end; exit 6";
    let mut running = spawn(runtime, script)?;
    let up = running.line()?;
    ctr(["task", "kill", "--all", "-s", "SIGTERM", &running.id])?.success()?;
    let mut seen = Seen::from(running.finish()?);
    seen.stdout.insert_str(0, &up);
    Ok(seen)
}

fn kill_nonsense(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        Ok(words(
            ctr(["task", "kill", "-s", "99", id])?.into(),
            // How a code is said differs between versions of containerd.
            &[],
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

fn create_start(runtime: Runtime) -> Result<Seen> {
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

fn twice(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let started: Seen = words(ctr(["task", "start", id])?.into(), &["already exists"]);
        let deleted: Seen = words(ctr(["task", "delete", id])?.into(), &["failed precondition"]);
        Ok(Seen::text(format!("{started:?} {deleted:?} {}", state(id)?)))
    })
}

/// What `ctr task list` says of a task.
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

fn states(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut all = vec![state(id)?];
        ctr(["task", "pause", id])?.success()?;
        all.push(state(id)?);
        ctr(["task", "resume", id])?.success()?;
        all.push(state(id)?);
        end(id)?;
        wait_until_stopped(id)?;
        all.push(state(id)?);
        Ok(Seen::text(all.join(" ")))
    })
}

/// A container that counts into a file of the host's.
fn counting(runtime: Runtime, look: impl FnOnce(&str, &Path) -> Result<Seen>) -> Result<Seen> {
    let script = "i=0; while :; do i=$((i+1)); echo $i > /data/count; sleep 0.05; done";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let source = shared(spec);
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
    observed(&run, |id| look(id, &bundle.shared()))
}

/// Whether something is written in `directory` within `time`.
fn written(directory: &Path, time: Duration) -> Result<bool> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(directory, AddWatchFlags::IN_MODIFY)?;
    Ok(wait_readable(&inotify, Instant::now() + time).is_ok())
}

fn pause(runtime: Runtime) -> Result<Seen> {
    counting(runtime, |id, directory| {
        let mut all = vec![written(directory, DEADLINE)?];
        ctr(["task", "pause", id])?.success()?;
        all.push(written(directory, Duration::from_secs(2))?);
        ctr(["task", "resume", id])?.success()?;
        all.push(written(directory, DEADLINE)?);
        Ok(Seen::text(format!("{all:?}")))
    })
}

fn kill_paused(runtime: Runtime) -> Result<Seen> {
    let mut running = spawn(runtime, "echo up; while :; do sleep 0.1; done")?;
    running.line()?;
    ctr(["task", "pause", &running.id])?.success()?;
    running.kill("SIGKILL")?;
    Ok(running.finish()?.into())
}

/// Update, as Kubernetes makes it of a running container.
fn change(id: &str, resources: &Value) -> Result<()> {
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

const FILES: &str = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.max pids.max";

/// The limits after each of `updates` to a container that starts with some.
fn updated(runtime: Runtime, updates: &[Value]) -> Result<Seen> {
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
    observed(&run, |id| {
        let mut all = Seen::default();
        for (number, resources) in updates.iter().enumerate() {
            change(id, resources)?;
            let name = format!("x{number}");
            all.stdout += &ctr(["task", "exec", "--exec-id", &name, id, "sh", "-c", FILES])?.success()?;
        }
        Ok(all)
    })
}

fn update(runtime: Runtime) -> Result<Seen> {
    updated(
        runtime,
        &[json!({
            "memory": {"limit": 33_554_432, "reservation": 8_388_608},
            "cpu": {"shares": 1024, "quota": 20_000, "period": 50_000}, "pids": {"limit": 9}
        })],
    )
}

fn update_twice(runtime: Runtime) -> Result<Seen> {
    updated(
        runtime,
        &[
            json!({"memory": {"limit": 134_217_728}}),
            json!({"memory": {"limit": 50_331_648}}),
        ],
    )
}

fn update_one(runtime: Runtime) -> Result<Seen> {
    updated(runtime, &[json!({"cpu": {"quota": 30_000, "period": 100_000}})])
}

/// Names of what `ctr task metrics` tells, and the figures that are known: the limits.
fn metrics(runtime: Runtime) -> Result<Seen> {
    let bundle = Bundle::new(SLEEP, |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
    })?;
    let run = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    };
    observed(&run, |id| {
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
        Ok(Seen::text(stdout))
    })
}
