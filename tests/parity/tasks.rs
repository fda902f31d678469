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
    calls("kill: one exec", &["Task.Kill", "Task.Exec"], kill_exec),
    calls("kill: all processes", &["Task.Kill"], kill_all),
    calls(
        "kill: a signal that does not exist",
        &["Task.Kill"],
        kill_nonsense,
    ),
    calls("an exec after the end is refused", &["Task.Exec"], exec_after_end),
    calls(
        "an exec ends with the container",
        &["Task.Exec", "Task.Wait"],
        exec_ends_too,
    ),
    calls(
        "an exec's id that is taken is refused",
        &["Task.Exec"],
        taken_exec,
    ),
    calls(
        "an exec reads its standard input to the end",
        &["Task.Exec", "Task.CloseIO"],
        exec_stdin,
    ),
    calls(
        "an exec in the background",
        &["Task.Exec", "Task.Pids", "Task.Delete"],
        exec_detached,
    ),
    calls(
        "a container reads its standard input to the end",
        &["Task.CloseIO"],
        stdin,
    ),
    calls(
        "1 MiB through standard input and output",
        &["Task.CloseIO"],
        stdin_much,
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
        "pause: an exec is refused",
        &["Task.Pause", "Task.Exec"],
        exec_paused,
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
    calls(
        "a process in the background does not hold the container up",
        &["Task.Wait"],
        background,
    ),
    calls("output to a log file", &["Task.Create"], log_file),
    calls("no streams at all", &["Task.Create"], no_streams),
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

fn spawn(runtime: Runtime, script: &str) -> Result<Foreground> {
    Run {
        command: &["sh", "-c", script],
        runtime,
        ..Run::default()
    }
    .spawn(&fresh_id("task"))
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
    looked_at(&id, look)
}

fn looked_at(id: &str, look: impl FnOnce(&str) -> Result<Seen>) -> Result<Seen> {
    let seen = look(id);
    remove_detached(id)?;
    let mut seen = seen?;
    seen.stderr = seen.stderr.replace(id, "ID");
    Ok(seen)
}

const SLEEP: &[&str] = &["sleep", "1000000"];

fn end(id: &str) -> Result<()> {
    ctr(["task", "kill", "-s", "SIGKILL", id])?.success().map(drop)
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

fn kill_exec(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = exec(id, "x", "echo up; exec sleep 1000")?;
        let up = running.line()?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        let mut seen = Seen::from(running.finish()?);
        seen.stdout.insert_str(0, &up);
        seen.stdout += state(id)?;
        Ok(seen)
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
            &["invalid argument"],
        ))
    })
}

fn exec_after_end(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        end(id)?;
        wait_until_stopped(id)?;
        Ok(words(
            ctr(["task", "exec", "--exec-id", "x", id, "true"])?.into(),
            &["stopped"],
        ))
    })
}

/// `sh -c script` by `ctr task exec`, with its streams.
fn exec(id: &str, exec_id: &str, script: &str) -> Result<Foreground> {
    Foreground::ctr(
        &["task", "exec", "--exec-id", exec_id, id, "sh", "-c", script],
        id,
    )
}

fn exec_ends_too(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = exec(id, "x", "echo up; sleep 1000")?;
        let up = running.line()?;
        end(id)?;
        let mut seen = Seen::from(running.finish()?);
        seen.stdout.insert_str(0, &up);
        Ok(seen)
    })
}

fn taken_exec(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = exec(id, "x", "echo up; sleep 1000")?;
        running.line()?;
        let second = ctr(["task", "exec", "--exec-id", "x", id, "true"])?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        running.finish()?;
        Ok(words(second.into(), &["already exists"]))
    })
}

/// Feeds `bytes` once `running` says that it is there.
fn fed(mut running: Foreground, bytes: Vec<u8>) -> Result<Seen> {
    let up = running.line()?;
    let feeder = running.feed(bytes)?;
    let mut seen = Seen::from(running.finish()?);
    feeder.join().ok().context("the feeding thread panicked")??;
    seen.stdout.insert_str(0, &up);
    Ok(seen)
}

fn exec_stdin(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        fed(
            exec(id, "x", "echo up; cat; echo end; exit 4")?,
            b"one\ntwo\n".to_vec(),
        )
    })
}

fn stdin(runtime: Runtime) -> Result<Seen> {
    fed(
        spawn(runtime, "echo up; cat; echo end; exit 4")?,
        b"one\ntwo".to_vec(),
    )
}

fn stdin_much(runtime: Runtime) -> Result<Seen> {
    let bytes = (0..131_072_u32)
        .flat_map(|number| format!("{number:07}\n").into_bytes())
        .collect();
    fed(spawn(runtime, "echo up; exec cat")?, bytes)
}

fn exec_detached(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let first = ctr(["task", "exec", "-d", "--exec-id", "x", id, "sleep", "1000"])?;
        let two = ctr(["task", "ps", id])?.success()?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        let deleted = ctr(["task", "delete", "--exec-id", "x", id])?;
        let one = ctr(["task", "ps", id])?.success()?;
        let mut seen = Seen::from(first);
        seen.stdout = format!(
            "{} and {} lines; {:?}",
            two.lines().count(),
            one.lines().count(),
            deleted.code
        );
        Ok(seen)
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
fn state(id: &str) -> Result<&'static str> {
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
    let id = fresh_id("count");
    Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    looked_at(&id, |id| look(id, &bundle.shared()))
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

fn exec_paused(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        ctr(["task", "pause", id])?.success()?;
        let output = ctr(["task", "exec", "--exec-id", "x", id, "true"])?;
        ctr(["task", "resume", id])?.success()?;
        let after = ctr(["task", "exec", "--exec-id", "y", id, "echo", "after"])?;
        let mut seen = words(output.into(), &["paused"]);
        seen.stdout = after.text();
        Ok(seen)
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
    let id = fresh_id("update");
    Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    looked_at(&id, |id| {
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
    let id = fresh_id("metrics");
    Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    looked_at(&id, |id| {
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

fn background(runtime: Runtime) -> Result<Seen> {
    Ok(spawn(runtime, "sleep 1000 & echo out; exit 3")?.finish()?.into())
}

fn log_file(runtime: Runtime) -> Result<Seen> {
    let directory = tempfile::tempdir_in("/run")?;
    let log = directory.path().join("log");
    let uri = format!("file://{}", log.display());
    let id = fresh_id("log");
    let flags = ["--log-uri", &uri];
    Run {
        flags: &flags,
        command: &["sh", "-c", "echo out; echo err >&2"],
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    looked_at(&id, |id| {
        wait_until_stopped(id)?;
        ctr(["task", "delete", id])?;
        Ok(Seen::text(std::fs::read_to_string(&log)?))
    })
}

fn no_streams(runtime: Runtime) -> Result<Seen> {
    let bundle = Bundle::new(
        &[
            "sh",
            "-c",
            "readlink /proc/self/fd/1 > /data/fds; echo x; echo y >&2; echo $? >> /data/fds",
        ],
        |spec| {
            let source = shared(spec);
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(
                    json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}),
                );
            }
        },
    )?;
    let id = fresh_id("null");
    Run {
        flags: &["--null-io"],
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    looked_at(&id, |id| {
        wait_until_stopped(id)?;
        Ok(Seen::text(std::fs::read_to_string(bundle.shared().join("fds"))?))
    })
}
