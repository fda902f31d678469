//! The connection to containerd's CRI. Cases make their pods with it; `nacre-cri` removes what they leave behind.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::grpc::{Answers, Connection, Status};
use super::pod::Pod;
use super::wire::{Method, Schema};
use crate::containerd::Runtime;
use crate::containerd::ctr::{DEADLINE, ctr};
use crate::containerd::restart::restart_containerd;

/// The pods' namespace; what a failed case leaves is found by it.
pub const NAMESPACE: &str = "nacre-cri";

/// The cgroup of all pods, as kubelet's `/kubepods`. It exists for the whole run.
const CGROUP: &str = "/nacre-cri";

/// gRPC's code of a server that does not serve yet.
const UNAVAILABLE: u32 = 14;

/// A number that no other pod or container of this run has.
pub(super) fn fresh_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

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

    /// Prints a figure that runc and Nacre need not share, such as a rate.
    pub fn figure(&self, text: &str) {
        println!("    figure: {} {text}", self.handler);
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

    /// Kills containerd, starts it again and waits until it knows its pods again.
    ///
    /// # Errors
    /// If it does not within the deadline.
    pub fn restart_containerd(&self) -> Result<()> {
        restart_containerd()?;
        let until = Instant::now() + DEADLINE;
        // Until then it answers that it is unavailable, in 1.6 by an unknown error with this text. Each turn waits
        // for a program's start and end.
        let is_starting = |status: &Status| {
            status.code == UNAVAILABLE || status.message.contains("server is not initialized yet")
        };
        while let Err(error) = self.call("ListPodSandbox", json!({})) {
            let is_starting = error.downcast_ref().is_some_and(is_starting);
            ensure!(is_starting && Instant::now() < until, "{error:#}");
            ctr(["version"])?;
        }
        Ok(())
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
        let answers = self.connection.stream(&method.path, &bytes, DEADLINE)?;
        Ok(Stream { method, answers })
    }

    /// A pod's configuration with a name of its own, changed by `change`.
    pub fn pod_config(&self, change: Value) -> Value {
        let name = format!("pod-{}", fresh_number());
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
        Ok(Pod::new(self, text(&answer, "/pod_sandbox_id")?, config))
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
