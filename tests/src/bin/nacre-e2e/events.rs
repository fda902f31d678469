//! Tests of the events that containerd publishes for a task, and their order.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{
    Foreground, IMAGE, Run, ctr, fresh_id, remove_detached, wait_readable, wait_until_stopped,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::setup::containerd_pid;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("all events of a task, in order", all_events),
    test(
        "events are delivered after containerd was stopped",
        containerd_stopped,
    ),
    test(
        "an OOM-killed container: TaskOOM and exit code 137",
        out_of_memory,
    ),
];

/// A `ctr events` process that is subscribed.
struct Events(Foreground);

impl Events {
    /// Starts `ctr events` and waits until it is subscribed.
    fn listen() -> Result<Self> {
        let events = Foreground::ctr(&["events"], "events")?;
        // ctr does not report when it has subscribed: cause events until it prints one.
        for number in 0..60 {
            let label = format!("probe={number}");
            ctr(["images", "label", IMAGE, &label])?.success()?;
            if events.readable(Instant::now() + Duration::from_secs(1)) {
                return Ok(Self(events));
            }
        }
        anyhow::bail!("ctr events printed nothing for 60 events")
    }

    /// Returns the topics of task `id` up to the `times`-th `last`. The exec id follows the topic of an exec
    /// process.
    fn until(mut self, id: &str, last: &str, times: usize) -> Result<Vec<String>> {
        let mut topics: Vec<String> = Vec::new();
        while topics.iter().filter(|topic| *topic == last).count() < times {
            let line = self
                .0
                .line()
                .with_context(|| format!("waiting for {last}; events so far: {topics:?}"))?;
            if let Some(topic) = topic(&line, id)? {
                topics.push(topic);
            }
        }
        self.0.kill_ctr()?;
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
    ensure!(
        greedy.code == Some(137),
        "an OOM-killed exec process gave {greedy:?}"
    );
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
    // Containerd's client publishes events for deleted exec processes. They are not the shim's.
    let topics: Vec<&str> = topics
        .iter()
        .map(String::as_str)
        .filter(|topic| !topic.starts_with("delete "))
        .collect();
    ensure!(topics == want, "the events were {topics:?}");
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
    let output = run.output(&id)?;
    let topics = events.until(&id, "delete", 1)?;
    ensure!(output.code == Some(137), "{output:?}");
    ensure!(
        topics == ["create", "start", "oom", "exit", "delete"],
        "the events were {topics:?}"
    );
    Ok(())
}

/// Stops containerd for longer than a shim waits for an event to be acknowledged.
fn containerd_stopped() -> Result<()> {
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
    let stopped = fs::write(directory.path().join("go"), "").and_then(|()| {
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(containerd.as_raw()).ok_or(std::io::ErrorKind::NotFound)?,
            rustix::process::PidfdFlags::empty(),
        )?;
        // containerd does not exit, so that this waits for the full 12 s.
        let _ = wait_readable(&pidfd, Instant::now() + Duration::from_secs(12));
        Ok(())
    });
    kill(containerd, Signal::SIGCONT)?;
    stopped?;
    wait_until_stopped(&id)?;
    let exited = directory.path().join("gone").exists();
    let deleted = ctr(["task", "delete", &id])?;
    ctr(["containers", "delete", &id])?.success()?;
    // The shim sends an event again if it was not acknowledged in time, so that it may arrive twice.
    let mut topics = events.until(&id, "delete", 1)?;
    topics.dedup();
    ensure!(exited, "the container did not exit while containerd was stopped");
    ensure!(deleted.stderr.contains("exit code 9"), "{deleted:?}");
    ensure!(
        topics == ["create", "start", "exit", "delete"],
        "the events were {topics:?}"
    );
    Ok(())
}
