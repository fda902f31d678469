//! Hooks of the OCI specification that run on the host, in the shim's namespaces: prestart and createRuntime (within
//! Create, before the container's init is made), poststart (within Start), poststop (within Delete). Each gets the
//! container's state on its standard input. `startContainer` runs in the guest and is none of ours.

use std::fs::File;
use std::io::{self, PipeReader, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::sys;

/// Most of a hook's output that is told.
const KEPT: usize = 1024;
/// Reads after its end: a pipeful.
const LAST_READS: usize = 16;

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before the container's init is made; older than the next, and run before it.
    Prestart,
    /// Before the container's init is made.
    CreateRuntime,
    /// After the command was started.
    Poststart,
    /// After the container is deleted.
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

    /// The container's status by then.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime => "creating",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Hook {
    path: PathBuf,
    /// With `argv[0]`, which need not be the path.
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    /// Seconds.
    timeout: Option<u64>,
}

/// A spec's `hooks`, as far as they run on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lists {
    prestart: Option<Vec<Hook>>,
    create_runtime: Option<Vec<Hook>>,
    poststart: Option<Vec<Hook>>,
    poststop: Option<Vec<Hook>>,
}

/// A container's hooks on the host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hooks {
    lists: Lists,
    document: StateDocument,
}

/// Hooks that the specification does not allow.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where, as a JSON path.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl Hooks {
    /// The keys of a spec's `hooks` that are read here.
    pub const KEYS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

    /// Reads the hooks of container `id` of the spec `spec` in `bundle`.
    ///
    /// # Errors
    /// [`Invalid`] with the first that can't be run.
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
            let words = [&hook.args, &hook.env].into_iter().flatten().flatten();
            if words.into_iter().any(|word| word.contains('\0')) {
                return Err(refuse("args", "a word with a NUL byte"));
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

    /// Whether there is one at `point`.
    #[must_use]
    pub fn has(&self, point: Point) -> bool {
        !self.at(point).is_empty()
    }

    /// Runs those at `point`, one after the other, up to the first that fails; `pid` is the VMM's.
    ///
    /// # Errors
    /// [`Failed`] with the hook.
    pub async fn run(&self, point: Point, pid: u32) -> Result<(), Failed> {
        for (index, hook) in self.at(point).iter().enumerate() {
            self.run_one(point, index, hook, pid).await?;
        }
        Ok(())
    }

    /// Runs all at `point`; what fails is logged.
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

/// Whose hooks run: what a hook is told, but for status and pid.
#[derive(Debug, Clone, Default, PartialEq)]
struct StateDocument {
    oci_version: String,
    id: String,
    bundle: PathBuf,
    /// Null for none.
    annotations: Value,
}

impl StateDocument {
    /// The state as the specification has it. Its pid is the VMM's on the host, whose namespaces a container's traffic
    /// goes through; a stopped container has none.
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
        let begun = self.start(state, bundle);
        let (child, output) = begun.map_err(|error| error.to_string())?;
        let mut child = Ended(child);
        let mut told = Vec::new();
        let ending = child.wait(output, &mut told);
        let status = match self.timeout {
            None => ending.await,
            Some(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), ending).await {
                Ok(status) => status,
                // Dropping it kills it.
                Err(_elapsed) => return Err(format!("not done within {seconds} s{}", quote(&told))),
            },
        };
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{}{}", describe(status), quote(&told))),
            Err(error) => Err(format!("waiting for it: {error}")),
        }
    }

    fn start(&self, state: &[u8], bundle: &Path) -> io::Result<(Child, PipeReader)> {
        // A file instead of a pipe: a hook that does not read its state is waited for no longer.
        let mut stdin: File = sys::memory_file("nacre-state", 0)?;
        stdin.write_all(state)?;
        stdin.rewind()?;
        let (output, theirs) = io::pipe()?;
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
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        Ok((command.spawn()?, output))
    }
}

/// A child that does not outlive its guard.
struct Ended(Child);

impl Ended {
    /// Waits for its end; what it writes until then is read, the last of it kept in `told`. What its own children write
    /// later is not waited for.
    async fn wait(&mut self, output: PipeReader, told: &mut Vec<u8>) -> io::Result<ExitStatus> {
        let ended = sys::watch_end(&self.0)?;
        let mut output = tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
        let mut buffer = [0; 4096];
        let mut is_open = true;
        loop {
            tokio::select! {
                read = output.read(&mut buffer), if is_open => match read {
                    Ok(0) | Err(_) => is_open = false,
                    Ok(length) => keep(told, buffer.get(..length).unwrap_or_default()),
                },
                ready = ended.readable() => {
                    drop(ready?);
                    break;
                }
            }
        }
        // What it wrote at last; a child of its own may go on writing.
        for _ in 0..LAST_READS {
            match output.try_read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => keep(told, buffer.get(..length).unwrap_or_default()),
            }
        }
        self.0.wait()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended and was waited for, or it is late: then it is killed, and its end is at hand.
        if self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

fn keep(told: &mut Vec<u8>, bytes: &[u8]) {
    told.extend_from_slice(bytes);
    let surplus = told.len().saturating_sub(KEPT);
    told.drain(..surplus);
}

fn quote(told: &[u8]) -> String {
    let text = String::from_utf8_lossy(told);
    match text.trim() {
        "" => String::new(),
        text => format!("; it wrote: {text}"),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with {code}"),
        (_, Some(signal)) => format!("it was ended by signal {signal}"),
        _ => status.to_string(),
    }
}

#[cfg(test)]
mod tests;
