//! containerd's CRI as a case uses it: pods, containers, their logs and ends. Everything that a case starts is
//! removed when it is dropped, also after an error.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

use super::grpc::{Answers, Connection, Status};
use super::log::{self, Line};
use super::wire::{Method, Schema};
use crate::containerd::Runtime;
use crate::containerd::ctr::{DEADLINE, IMAGE, wait_readable};
use crate::parity::Outcome;

/// The pods' namespace; what a failed case leaves is found by it.
pub const NAMESPACE: &str = "nacre-cri";

/// The cgroup of all pods, as kubelet's `/kubepods`. It exists for the whole run.
const CGROUP: &str = "/nacre-cri";

/// containerd keeps a container's status in a file here, which it replaces at each change.
const STATUS_FILES: &str = "/var/lib/containerd/io.containerd.grpc.v1.cri/containers";

/// Numbers the pods of this run.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Makes the cgroup of all pods, with every controller for its children.
///
/// # Errors
/// If the cgroup can't be made.
pub fn prepare_cgroup() -> Result<()> {
    let directory = format!("/sys/fs/cgroup{CGROUP}");
    fs::create_dir_all(&directory)?;
    let controllers = fs::read_to_string(format!("{directory}/cgroup.controllers"))?;
    let enable: Vec<String> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    let file = format!("{directory}/cgroup.subtree_control");
    fs::write(&file, enable.join(" ")).with_context(|| format!("writing {file}"))
}

/// A connection to containerd, and the runtime handler of its pods.
pub struct Node {
    connection: Connection,
    schema: Schema,
    /// The runtime of the pods.
    pub runtime: Runtime,
    /// The runtime handler of the pods.
    pub handler: String,
    logs: tempfile::TempDir,
}

impl Node {
    /// Connects to the containerd at CONTAINERD_ADDRESS.
    ///
    /// # Errors
    /// If it can't be reached.
    pub fn new(runtime: Runtime, handler: &str) -> Result<Self> {
        let address = std::env::var("CONTAINERD_ADDRESS").context("CONTAINERD_ADDRESS")?;
        Ok(Self {
            connection: Connection::open(Path::new(&address))?,
            schema: Schema::load()?,
            runtime,
            handler: handler.to_owned(),
            logs: tempfile::tempdir()?,
        })
    }

    /// A second connection, for another thread.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn again(&self) -> Result<Self> {
        Self::new(self.runtime, &self.handler)
    }

    /// Calls `method`. A refusal is a [`Status`].
    ///
    /// # Errors
    /// If containerd refuses the call or does not answer, or `request` is no such message.
    pub fn call(&self, method: &str, request: Value) -> Result<Value> {
        let found = self.schema.method(method)?;
        let bytes = found.encode(&request)?;
        let answer = self.connection.call(&found.path, &bytes, DEADLINE);
        match answer.with_context(|| format!("{method} {request}"))? {
            Ok(answer) => found.decode(&answer),
            Err(status) => Err(anyhow::Error::from(status).context(method.to_owned())),
        }
    }

    /// Calls `method`, which must be refused; the error is the outcome.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn refused(&self, method: &str, request: Value) -> Result<Status> {
        match self.call(method, request) {
            Ok(answer) => Err(anyhow::anyhow!("{method} succeeded: {answer}")),
            Err(error) => error.downcast(),
        }
    }

    /// Calls a `method` with many answers.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stream(&self, method: &str, request: &Value) -> Result<Stream<'_>> {
        let method = self.schema.method(method)?;
        let bytes = method.encode(request)?;
        let answers = self.connection.stream(&method.path, &bytes, DEADLINE)??;
        Ok(Stream { method, answers })
    }

    /// A pod's configuration with a name of its own, changed by `change`.
    pub fn pod_config(&self, change: Value) -> Value {
        let name = format!("pod-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut config = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": NAMESPACE},
            "log_directory": self.logs.path().join(&name),
            "linux": {
                "cgroup_parent": CGROUP,
                // As kubelet asks for by default; the interface's own default shares processes.
                "security_context": {"namespace_options": {"pid": "CONTAINER"}},
            },
        });
        merge(&mut config, change);
        config
    }

    /// Runs a pod whose configuration is changed by `change`.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn pod(&self, change: Value) -> Result<Pod<'_>> {
        self.pod_of(self.pod_config(change))
    }

    /// Runs a pod with this whole configuration.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn pod_of(&self, config: Value) -> Result<Pod<'_>> {
        let request = json!({"config": config, "runtime_handler": self.handler});
        let answer = self.call("RunPodSandbox", request)?;
        Ok(Pod {
            node: self,
            id: text(&answer, "/pod_sandbox_id")?,
            config,
            removed: Cell::new(false),
        })
    }

    /// Removes the pods that a failed case left behind.
    ///
    /// # Errors
    /// If they can't be listed or removed.
    pub fn remove_leftovers(&self) -> Result<()> {
        let listed = self.call("ListPodSandbox", json!({}))?;
        for pod in listed["items"].as_array().into_iter().flatten() {
            if pod["metadata"]["namespace"] == NAMESPACE {
                let id = json!({"pod_sandbox_id": pod["id"]});
                self.call("StopPodSandbox", id.clone())?;
                self.call("RemovePodSandbox", id)?;
            }
        }
        Ok(())
    }
}

/// The answers of a call, one after the other.
pub struct Stream<'n> {
    method: Method,
    answers: Answers<'n>,
}

impl Stream<'_> {
    /// The next answer.
    ///
    /// # Errors
    /// If there is none within the deadline.
    pub fn receive(&mut self) -> Result<Value> {
        let answer = self.answers.next(DEADLINE)?;
        self.method.decode(&answer.context("the stream ended")?)
    }
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
        let name = format!("c-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
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

    /// Waits until its status is as `wanted`, and returns it. Woken by containerd's file of the status.
    ///
    /// # Errors
    /// If it is not within the deadline.
    pub fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + DEADLINE;
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let directory = Path::new(STATUS_FILES).join(&self.id);
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
        changes
            .add_watch(&directory, flags)
            .with_context(|| format!("watching {}", directory.display()))?;
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            wait_readable(&changes, until).with_context(|| format!("waiting; the status is {status}"))?;
            changes.read_events()?;
        }
    }

    /// Waits for its end; what it printed is the outcome.
    ///
    /// # Errors
    /// If it does not end within the deadline.
    pub fn ended(&self) -> Result<Outcome> {
        let status = self.wait(|status| status["state"] == "CONTAINER_EXITED")?;
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
        let until = Instant::now() + DEADLINE;
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        changes.add_watch(&self.log, AddWatchFlags::IN_MODIFY)?;
        loop {
            let log = fs::read_to_string(&self.log)?;
            if log.contains(text) {
                return Ok(());
            }
            wait_readable(&changes, until)
                .with_context(|| format!("waiting for {text:?} in the log, which is {log:?}"))?;
            changes.read_events()?;
        }
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

/// The string at `pointer`, which must be there.
pub fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found
        .with_context(|| format!("no {pointer} in {value}"))?
        .to_owned())
}

/// Changes `to` by `change`: objects are merged, everything else is replaced.
pub fn merge(to: &mut Value, change: Value) {
    match (to, change) {
        (Value::Object(to), Value::Object(change)) => {
            for (key, value) in change {
                merge(to.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (to, change) => *to = change,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_merged() {
        let mut config = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut config, json!({"a": {"c": 3, "e": 4}, "d": [2, 3]}));
        assert_eq!(config, json!({"a": {"b": 1, "c": 3, "e": 4}, "d": [2, 3]}));
        merge(&mut config, Value::Null);
        assert_eq!(config["d"], json!([2, 3]));
    }
}
