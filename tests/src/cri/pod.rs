//! Pods and their containers, as a case uses them. [`super::node`] makes pods. Everything is removed when the pod
//! is dropped, also after an error. Ends and output are waited for by inotify, never by asking again and again.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

use super::log::{self, Line};
use super::node::{Node, fresh_number, merge, text};
use crate::containerd::ctr::{DEADLINE, IMAGE, wait_readable};
use crate::parity::Outcome;

/// containerd keeps a container's status in a file here, which it replaces at each change.
const STATUS_FILES: &str = "/var/lib/containerd/io.containerd.grpc.v1.cri/containers";

/// Calls `look` now and after each change of `path`, until it returns what is wanted. Its inner error says what is
/// waited for.
fn look_at_changes<T>(
    path: &Path,
    flags: AddWatchFlags,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let until = Instant::now() + deadline;
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    changes
        .add_watch(path, flags)
        .with_context(|| format!("watching {}", path.display()))?;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(waiting) => wait_readable(&changes, until).context(waiting)?,
        };
        changes.read_events()?;
    }
}

/// This program as a container's command, with the libraries that it needs: the image has only busybox.
///
/// # Errors
/// If the program's file can't be found.
pub fn this_program(arguments: &[&str]) -> Result<Value> {
    let program = std::env::current_exe()?;
    let mut command = vec!["/test".to_owned()];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    Ok(json!({
        "command": command,
        "mounts": [
            {"container_path": "/test", "host_path": program, "readonly": true},
            {"container_path": "/lib", "host_path": "/usr/lib", "readonly": true},
            {"container_path": "/lib64", "host_path": "/usr/lib64", "readonly": true},
        ],
    }))
}

/// A pod; removed when dropped.
pub struct Pod<'n> {
    node: &'n Node,
    /// Its id.
    pub id: String,
    /// Its configuration.
    pub config: Value,
    removed: Cell<bool>,
}

impl<'n> Pod<'n> {
    /// The pod `id` of `node`, which runs with this configuration.
    pub(super) fn new(node: &'n Node, id: String, config: Value) -> Self {
        Self {
            node,
            id,
            config,
            removed: Cell::new(false),
        }
    }

    /// The connection to containerd.
    pub fn node(&self) -> &'n Node {
        self.node
    }

    /// The request of calls that take only the pod's id.
    pub fn request(&self) -> Value {
        json!({"pod_sandbox_id": self.id})
    }

    /// The pod's status.
    ///
    /// # Errors
    /// If containerd does not know it.
    pub fn status(&self) -> Result<Value> {
        Ok(self.node.call("PodSandboxStatus", self.request())?["status"].take())
    }

    /// The pod's IPv4 and IPv6 address.
    ///
    /// # Errors
    /// If it has not both.
    pub fn addresses(&self) -> Result<[String; 2]> {
        let status = self.status()?;
        let first = text(&status, "/network/ip")?;
        let second = text(&status, "/network/additional_ips/0/ip")?;
        Ok(if first.contains(':') {
            [second, first]
        } else {
            [first, second]
        })
    }

    /// Creates a container from `sh -c script`, changed by `change`, and does not start it.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn create(&self, script: &str, change: Value) -> Result<Container<'_>> {
        let name = format!("c-{}", fresh_number());
        let mut config = json!({
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "log_path": format!("{name}.log"),
            "linux": {"security_context": {
                "namespace_options": self.config["linux"]["security_context"]["namespace_options"],
            }},
        });
        if !script.is_empty() {
            config["command"] = json!(["sh", "-c", script]);
        }
        merge(&mut config, change);
        let log = Path::new(self.config["log_directory"].as_str().unwrap_or_default())
            .join(config["log_path"].as_str().unwrap_or_default());
        let request = json!({"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config});
        let answer = self.node.call("CreateContainer", request)?;
        Ok(Container {
            node: self.node,
            id: text(&answer, "/container_id")?,
            log,
            _pod: self,
        })
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn start(&self, script: &str, change: Value) -> Result<Container<'_>> {
        let container = self.create(script, change)?;
        container.start()?;
        Ok(container)
    }

    /// Runs a container to its end and removes it; what it printed is the outcome.
    ///
    /// # Errors
    /// If containerd refuses it, or it does not end within the deadline.
    pub fn run(&self, script: &str, change: Value) -> Result<Outcome> {
        let container = self.start(script, change)?;
        let outcome = container.ended()?;
        container.remove()?;
        Ok(outcome)
    }

    /// Removes the pod's containers but the one with the id `kept`.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn remove_containers(&self, kept: Option<&str>) -> Result<()> {
        let request = json!({"filter": {"pod_sandbox_id": self.id}});
        let listed = self.node.call("ListContainers", request)?;
        for container in listed["containers"].as_array().into_iter().flatten() {
            if container["id"].as_str() != kept {
                let request = json!({"container_id": container["id"]});
                self.node.call("RemoveContainer", request)?;
            }
        }
        Ok(())
    }

    /// Stops the pod.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn stop(&self) -> Result<()> {
        self.node.call("StopPodSandbox", self.request()).map(drop)
    }

    /// Says that the case has removed it.
    pub fn is_removed(&self) {
        self.removed.set(true);
    }

    /// Stops and removes the pod.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn remove(&self) -> Result<()> {
        self.removed.set(true);
        self.stop()?;
        self.node.call("RemovePodSandbox", self.request()).map(drop)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if !self.removed.get()
            && let Err(error) = self.remove()
        {
            eprintln!("nacre-cri: removing pod {}: {error:#}", self.id);
        }
    }
}

/// A container of a pod; removed with it.
pub struct Container<'p> {
    node: &'p Node,
    /// Its id.
    pub id: String,
    /// The file of its log.
    pub log: PathBuf,
    _pod: &'p Pod<'p>,
}

impl Container<'_> {
    /// The request of calls that take only the container's id.
    pub fn request(&self) -> Value {
        json!({"container_id": self.id})
    }

    /// Starts it.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn start(&self) -> Result<()> {
        self.node.call("StartContainer", self.request()).map(drop)
    }

    /// Its status.
    ///
    /// # Errors
    /// If containerd does not know it.
    pub fn status(&self) -> Result<Value> {
        Ok(self.node.call("ContainerStatus", self.request())?["status"].take())
    }

    /// Waits until its status is as `wanted`, and returns it.
    ///
    /// # Errors
    /// If it is not within the deadline.
    pub fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.wait_within(DEADLINE, wanted)
    }

    /// As [`Self::wait`], with another deadline. Woken by containerd's file of the status.
    fn wait_within(&self, deadline: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let directory = Path::new(STATUS_FILES).join(&self.id);
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
        look_at_changes(&directory, flags, deadline, || {
            let status = self.status()?;
            Ok(if wanted(&status) {
                Ok(status)
            } else {
                Err(format!("waiting; the status is {status}"))
            })
        })
    }

    /// Waits for its end; what it printed is the outcome.
    ///
    /// # Errors
    /// If it does not end within the deadline.
    pub fn ended(&self) -> Result<Outcome> {
        self.ended_within(DEADLINE)
    }

    /// As [`Self::ended`], with another deadline.
    ///
    /// # Errors
    /// As [`Self::ended`].
    pub fn ended_within(&self, deadline: Duration) -> Result<Outcome> {
        let status = self.wait_within(deadline, |status| status["state"] == "CONTAINER_EXITED")?;
        let lines = log::read(&self.log)?;
        Ok(Outcome {
            code: status["exit_code"].as_i64().map(i32::try_from).transpose()?,
            stdout: log::text(&lines, "stdout"),
            stderr: log::text(&lines, "stderr"),
        })
    }

    /// The lines of its log.
    ///
    /// # Errors
    /// If the log can't be read or is malformed.
    pub fn lines(&self) -> Result<Vec<Line>> {
        log::read(&self.log)
    }

    /// Waits until its log contains `text`.
    ///
    /// # Errors
    /// If it does not within the deadline.
    pub fn prints(&self, text: &str) -> Result<()> {
        self.prints_within(DEADLINE, text)
    }

    /// As [`Self::prints`], with another deadline.
    ///
    /// # Errors
    /// As [`Self::prints`].
    pub fn prints_within(&self, deadline: Duration, text: &str) -> Result<()> {
        self.prints_at_least(1, text, deadline)
    }

    /// Waits until its log contains `text` so many times.
    ///
    /// # Errors
    /// If it does not within the deadline.
    pub fn prints_times(&self, text: &str, times: usize) -> Result<()> {
        self.prints_at_least(times, text, DEADLINE)
    }

    fn prints_at_least(&self, times: usize, text: &str, deadline: Duration) -> Result<()> {
        look_at_changes(&self.log, AddWatchFlags::IN_MODIFY, deadline, || {
            let log = fs::read_to_string(&self.log)?;
            Ok(if log.matches(text).count() >= times {
                Ok(())
            } else {
                Err(format!(
                    "waiting for {text:?} {times} times in the log, which is {log:?}"
                ))
            })
        })
    }

    /// Runs `command` in it by ExecSync, within `seconds` (0: no limit).
    ///
    /// # Errors
    /// If containerd refuses it or the time is over.
    pub fn exec_within(&self, command: &[&str], seconds: u64) -> Result<Outcome> {
        let request = json!({"container_id": self.id, "cmd": command, "timeout": seconds});
        let answer = self.node.call("ExecSync", request)?;
        Ok(Outcome {
            code: answer["exit_code"].as_i64().map(i32::try_from).transpose()?,
            stdout: text(&answer, "/stdout")?,
            stderr: text(&answer, "/stderr")?,
        })
    }

    /// Runs `sh -c script` in it.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn exec(&self, script: &str) -> Result<Outcome> {
        self.exec_within(&["sh", "-c", script], 0)
    }

    /// Standard output of `sh -c script` in it, which must succeed.
    ///
    /// # Errors
    /// If containerd refuses it, or the script fails.
    pub fn output(&self, script: &str) -> Result<String> {
        let outcome = self.exec(script)?;
        ensure!(outcome.code == Some(0), "{script}: {outcome}");
        Ok(outcome.stdout)
    }

    /// Stops it: its stop signal, and SIGKILL after `seconds`. Returns how long that took.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn stop(&self, seconds: u64) -> Result<Duration> {
        let started = Instant::now();
        let request = json!({"container_id": self.id, "timeout": seconds});
        self.node.call("StopContainer", request)?;
        Ok(started.elapsed())
    }

    /// Removes it.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn remove(&self) -> Result<()> {
        self.node.call("RemoveContainer", self.request()).map(drop)
    }
}
