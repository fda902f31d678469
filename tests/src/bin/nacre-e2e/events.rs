//! The events that containerd gets of a task, in their order.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Foreground, IMAGE, Run, ctr, fresh_id, remove_detached, wait_readable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::setup::containerd_pid;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("all events of a task, in order", all_events),
    test("events wait while containerd is away", containerd_away),
    test(
        "a container that runs out of memory: TaskOOM and 137",
        out_of_memory,
    ),
];

/// `ctr events`, once it is told something.
struct Events(Foreground);

impl Events {
    fn listen() -> Result<Self> {
        let events = Foreground::ctr(&["events"], "events")?;
        // ctr does not say when it listens: things happen until it tells of one.
        for number in 0..60 {
            let label = format!("probe={number}");
            ctr(["images", "label", IMAGE, &label])?.success()?;
            if events.readable(Instant::now() + Duration::from_secs(1)) {
                return Ok(Self(events));
            }
        }
        anyhow::bail!("ctr events tells nothing")
    }

    /// Topics of task `id` until `last` has come `times` times; an exec's are told with its id.
    fn until(mut self, id: &str, last: &str, times: usize) -> Result<Vec<String>> {
        let mut topics: Vec<String> = Vec::new();
        while topics.iter().filter(|topic| *topic == last).count() < times {
            let line = self
                .0
                .line()
                .with_context(|| format!("waiting for {last}; told so far: {topics:?}"))?;
            if let Some(topic) = topic(&line, id)? {
                topics.push(topic);
            }
        }
        self.0.end()?;
        Ok(topics)
    }
}

/// The topic of an event of task `id`, from a line of `ctr events`: time, namespace, topic, JSON.
fn topic(line: &str, id: &str) -> Result<Option<String>> {
    let Some((before, json)) = line.split_once('{') else {
        return Ok(None);
    };
    let event: serde_json::Value = serde_json::from_str(&format!("{{{json}"))?;
    let Some(topic) = before
        .split_whitespace()
        .find_map(|word| word.strip_prefix("/tasks/"))
    else {
        return Ok(None);
    };
    if event["container_id"] != id {
        return Ok(None);
    }
    let exec = event["exec_id"]
        .as_str()
        .or_else(|| event["id"].as_str().filter(|process| *process != id));
    Ok(Some(match exec {
        Some(exec) if !exec.is_empty() => format!("{topic} {exec}"),
        _ => topic.to_owned(),
    }))
}

fn all_events() -> Result<()> {
    let events = Events::listen()?;
    let id = fresh_id("events");
    let run = Run {
        flags: &["--memory-limit", "33554432"],
        command: &["sleep", "1000000"],
        ..Run::default()
    };
    run.detach(&id)?;
    ctr(["task", "exec", "--exec-id", "one", &id, "true"])?.success()?;
    ctr(["task", "pause", &id])?.success()?;
    ctr(["task", "resume", &id])?.success()?;
    let greedy = ctr(["task", "exec", "--exec-id", "two", &id, "tail", "/dev/zero"])?;
    ctr(["task", "kill", "-s", "SIGKILL", &id])?.success()?;
    remove_detached(&id)?;
    let topics = events.until(&id, "delete", 1)?;
    ensure!(greedy.code == Some(137), "an exec out of memory gave {greedy:?}");
    let want = [
        "create",
        "start",
        "exec-added one",
        "exec-started one",
        "exit one",
        "paused",
        "resumed",
        "exec-added two",
        "exec-started two",
        "oom",
        "exit two",
        "exit",
        "delete",
    ];
    // What containerd's own client tells of an exec's removal is of no interest here.
    let topics: Vec<&str> = topics
        .iter()
        .map(String::as_str)
        .filter(|topic| !topic.starts_with("delete "))
        .collect();
    ensure!(topics == want, "events came as {topics:?}");
    Ok(())
}

fn out_of_memory() -> Result<()> {
    let events = Events::listen()?;
    let id = fresh_id("oom");
    let run = Run {
        flags: &["--memory-limit", "33554432"],
        command: &["tail", "/dev/zero"],
        ..Run::default()
    };
    let output = run.finish(&id)?;
    let topics = events.until(&id, "delete", 1)?;
    ensure!(output.code == Some(137), "{output:?}");
    ensure!(
        topics == ["create", "start", "oom", "exit", "delete"],
        "events came as {topics:?}"
    );
    Ok(())
}

/// Stops containerd for longer than a shim waits for an answer.
fn containerd_away() -> Result<()> {
    let events = Events::listen()?;
    let directory = tempfile::tempdir()?;
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:rw",
        directory.path().display()
    );
    let id = fresh_id("away");
    let run = Run {
        flags: &["--mount", &mount],
        command: &[
            "sh",
            "-c",
            "while [ ! -e /data/go ]; do sleep 0.1; done; touch /data/gone; exit 9",
        ],
        ..Run::default()
    };
    run.detach(&id)?;
    let containerd = Pid::from_raw(i32::try_from(containerd_pid()?)?);
    kill(containerd, Signal::SIGSTOP)?;
    let away = fs::write(directory.path().join("go"), "").and_then(|()| {
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(containerd.as_raw()).ok_or(std::io::ErrorKind::NotFound)?,
            rustix::process::PidfdFlags::empty(),
        )?;
        // It does not end: this is how long it is away.
        let _ = wait_readable(&pidfd, Instant::now() + Duration::from_secs(12));
        Ok(())
    });
    kill(containerd, Signal::SIGCONT)?;
    away?;
    nacre_tests::containerd::ctr::wait_until_stopped(&id)?;
    let gone = directory.path().join("gone").exists();
    let deleted = ctr(["task", "delete", &id])?;
    ctr(["containers", "delete", &id])?.success()?;
    // Of an event that was not acknowledged in time nobody knows whether it came: it may be told again.
    let mut topics = events.until(&id, "delete", 1)?;
    topics.dedup();
    ensure!(gone, "the container did not end while containerd was away");
    ensure!(deleted.stderr.contains("exit code 9"), "{deleted:?}");
    ensure!(
        topics == ["create", "start", "exit", "delete"],
        "events came as {topics:?}"
    );
    Ok(())
}
