//! Hooks of the OCI specification that run on the host, in the shim's namespaces: prestart and createRuntime
//! (during Create, before the container's init is created), poststart (during Start), poststop (during
//! Delete). Each gets the container's state on standard input. The guest runs `startContainer`; this module
//! never does. Parsed by `bundle`, run by the sandbox.

use std::fs::File;
use std::io::{self, PipeReader, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::sys;

/// How much of a failed hook's output its error has: the last bytes.
const KEPT: usize = 1024;
/// Reads of the output after a hook has exited: 4 KiB each, a pipeful (64 KiB) together.
const LAST_READS: usize = 16;

/// How long a killed hook may take to exit.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// The point of a container's life at which a list of hooks runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before the container's init is created; deprecated by the specification, and run before createRuntime.
    Prestart,
    /// Before the container's init is created.
    CreateRuntime,
    /// After the container's command was started.
    Poststart,
    /// After the container was deleted.
    Poststop,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The container's status, as the specification has it at this point.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime => "creating",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// An entry of a list of hooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hook {
    path: PathBuf,
    /// `argv`, including `argv[0]`.
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    /// Seconds.
    timeout: Option<u64>,
}

/// The lists of a spec's `hooks` that run on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lists {
    prestart: Option<Vec<Hook>>,
    create_runtime: Option<Vec<Hook>>,
    poststart: Option<Vec<Hook>>,
    poststop: Option<Vec<Hook>>,
}

/// A container's hooks that run on the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hooks {
    lists: Lists,
    document: StateDocument,
}

/// A field of `hooks` that is not valid.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field's JSON path.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl Hooks {
    /// The keys of a spec's `hooks` that this module reads.
    pub const KEYS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

    /// Parses the hooks in `spec`, the spec of container `id` in `bundle`.
    ///
    /// # Errors
    /// [`Invalid`] with the first invalid field.
    pub fn parse(id: &str, bundle: &Path, spec: &Value) -> Result<Self, Invalid> {
        let lists: Option<Lists> = Option::deserialize(&spec["hooks"]).map_err(|error| Invalid {
            path: "hooks".into(),
            reason: error.to_string(),
        })?;
        let document = StateDocument {
            oci_version: spec["ociVersion"].as_str().unwrap_or_default().to_owned(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: spec["annotations"].clone(),
        };
        let parsed = Self {
            lists: lists.unwrap_or_default(),
            document,
        };
        for (point, index, hook) in parsed.all() {
            let refuse = |key: &str, reason: &str| Invalid {
                path: format!("hooks.{}[{index}].{key}", point.name()),
                reason: reason.to_owned(),
            };
            if !hook.path.is_absolute() {
                return Err(refuse("path", "not an absolute path"));
            }
            if hook.timeout == Some(0) {
                return Err(refuse("timeout", "must be greater than zero"));
            }
            for (key, strings) in [("args", &hook.args), ("env", &hook.env)] {
                if strings.iter().flatten().any(|string| string.contains('\0')) {
                    return Err(refuse(key, "contains a NUL byte"));
                }
            }
        }
        Ok(parsed)
    }

    fn at(&self, point: Point) -> &[Hook] {
        match point {
            Point::Prestart => &self.lists.prestart,
            Point::CreateRuntime => &self.lists.create_runtime,
            Point::Poststart => &self.lists.poststart,
            Point::Poststop => &self.lists.poststop,
        }
        .as_deref()
        .unwrap_or_default()
    }

    fn all(&self) -> impl Iterator<Item = (Point, usize, &Hook)> {
        [
            Point::Prestart,
            Point::CreateRuntime,
            Point::Poststart,
            Point::Poststop,
        ]
        .into_iter()
        .flat_map(|point| {
            self.at(point)
                .iter()
                .enumerate()
                .map(move |(index, hook)| (point, index, hook))
        })
    }

    /// True if the spec has hooks at `point`.
    #[must_use]
    pub fn has(&self, point: Point) -> bool {
        !self.at(point).is_empty()
    }

    /// The poststop hooks alone.
    #[must_use]
    pub fn only_poststop(&self) -> Self {
        Self {
            lists: Lists {
                poststop: self.lists.poststop.clone(),
                ..Lists::default()
            },
            document: self.document.clone(),
        }
    }

    /// Runs the hooks at `point` in order and stops at the first that fails; `pid` is the VMM's.
    ///
    /// # Errors
    /// [`Failed`] with the hook that failed.
    pub async fn run(&self, point: Point, pid: u32) -> Result<(), Failed> {
        for (index, hook) in self.at(point).iter().enumerate() {
            self.run_one(point, index, hook, pid).await?;
        }
        Ok(())
    }

    /// Runs all hooks at `point` in order; failures are only logged.
    pub async fn run_all(&self, point: Point, pid: u32) {
        for (index, hook) in self.at(point).iter().enumerate() {
            if let Err(failed) = self.run_one(point, index, hook, pid).await {
                crate::log::warn(format_args!("{}: {failed}", self.document.id));
            }
        }
    }

    async fn run_one(&self, point: Point, index: usize, hook: &Hook, pid: u32) -> Result<(), Failed> {
        let state = self.document.state(point.status(), pid);
        hook.run(&state, &self.document.bundle)
            .await
            .map_err(|reason| Failed {
                point: point.name(),
                index,
                program: hook.path.clone(),
                reason,
            })
    }
}

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[error("hooks.{point}[{index}] {}: {reason}", program.display())]
pub struct Failed {
    point: &'static str,
    index: usize,
    program: PathBuf,
    reason: String,
}

/// The container's state for a hook's standard input, without status and pid.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct StateDocument {
    oci_version: String,
    id: String,
    bundle: PathBuf,
    /// Null if the spec has none.
    annotations: Value,
}

impl StateDocument {
    /// The state in the specification's JSON. `pid` is the VMM's on the host, because the container's network
    /// traffic goes through the VMM's network namespace. A stopped container has no pid.
    fn state(&self, status: &str, pid: u32) -> Vec<u8> {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
        });
        if status != "stopped" {
            state["pid"] = pid.into();
        }
        if self.annotations.is_object() {
            state["annotations"] = self.annotations.clone();
        }
        state.to_string().into_bytes()
    }
}

impl Hook {
    async fn run(&self, state: &[u8], bundle: &Path) -> Result<(), String> {
        let (child, output) = self.spawn(state, bundle).map_err(|error| error.to_string())?;
        let mut child = KillOnDrop(child);
        let mut tail = Vec::new();
        let exit = child.wait(output, &mut tail);
        let status = match self.timeout {
            None => exit.await,
            Some(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), exit).await {
                Ok(status) => status,
                Err(_elapsed) => {
                    child.kill().await;
                    return Err(format!("not done within {seconds} s{}", quote(&tail)));
                }
            },
        };
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{}{}", exit_reason(status), quote(&tail))),
            Err(error) => Err(format!("waiting for the hook: {error}")),
        }
    }

    /// Starts the hook; returns it with the pipe that both its outputs go to.
    fn spawn(&self, state: &[u8], bundle: &Path) -> io::Result<(Child, PipeReader)> {
        // A file, not a pipe: writing to a pipe could block if the hook does not read its state.
        let mut stdin: File = sys::memory_file("nacre-state", 0)?;
        stdin.write_all(state)?;
        stdin.rewind()?;
        let (output, writer) = io::pipe()?;
        let mut command = Command::new(&self.path);
        if let Some((name, rest)) = self.args.as_deref().and_then(<[String]>::split_first) {
            command.arg0(name).args(rest);
        }
        let variables = self.env.iter().flatten();
        command
            .env_clear()
            .envs(variables.filter_map(|variable| variable.split_once('=')))
            .current_dir(bundle)
            .stdin(stdin)
            .stdout(writer.try_clone()?)
            .stderr(writer);
        Ok((command.spawn()?, output))
    }
}

/// A child process that is killed, if it still runs, when this is dropped.
struct KillOnDrop(Child);

impl KillOnDrop {
    /// Waits until the child exits and reads its output meanwhile; `tail` gets the last bytes. Does not wait
    /// for output of the child's own children.
    async fn wait(&mut self, output: PipeReader, tail: &mut Vec<u8>) -> io::Result<ExitStatus> {
        let ended = sys::watch_end(&self.0)?;
        let mut output = tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
        let mut buffer = [0; 4096];
        let mut is_open = true;
        loop {
            tokio::select! {
                read = output.read(&mut buffer), if is_open => match read {
                    Ok(0) | Err(_) => is_open = false,
                    Ok(length) => keep(tail, buffer.get(..length).unwrap_or_default()),
                },
                ready = ended.readable() => {
                    drop(ready?);
                    break;
                }
            }
        }
        // What the child wrote just before it exited. Bounded, because the child's own children may go on
        // writing.
        for _ in 0..LAST_READS {
            match output.try_read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => keep(tail, buffer.get(..length).unwrap_or_default()),
            }
        }
        self.0.wait()
    }

    /// Kills the child and waits for it, but not for one that hangs in an uninterruptible system call.
    async fn kill(&mut self) {
        let killed = self.0.kill().and_then(|()| sys::watch_end(&self.0));
        if let Ok(exited) = killed {
            let _ = tokio::time::timeout(KILL_DEADLINE, exited.readable()).await;
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It was reaped, or it is late or no longer wanted.
        if matches!(self.0.try_wait(), Ok(None))
            && let Ok(pidfd) = sys::watch_end(&self.0)
        {
            sys::end_child(pidfd.get_ref());
        }
    }
}

/// Appends `bytes` to `tail`, which keeps its last [`KEPT`] bytes.
fn keep(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    let surplus = tail.len().saturating_sub(KEPT);
    tail.drain(..surplus);
}

/// A hook's output for its error message.
fn quote(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    match text.trim() {
        "" => String::new(),
        text => format!("; output: {text}"),
    }
}

fn exit_reason(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => status.to_string(),
    }
}

#[cfg(test)]
mod tests;
