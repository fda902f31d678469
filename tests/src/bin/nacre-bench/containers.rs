//! `ctr` and `nacre` as the benchmark calls them. Every container that is started is removed again, also
//! after an error.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_tests::containerd::ctr::IMAGE;
use serde_json::Value;

use crate::runtimes::{Build, MeasuredRuntime};

/// An id that no other container of this machine has.
pub fn id(word: &str, number: usize) -> String {
    format!("bench-{word}-{}-{number}", std::process::id())
}

/// `ctr run` with `flags`; the caller starts it.
fn ctr_run(shim_runtime: &MeasuredRuntime, flags: &[&str], id: &str, command: &[&str]) -> Command {
    let mut run = Command::new("ctr");
    // ctr connects within 10 s by default, in which 100 of them don't share one emulated CPU.
    run.args(["--connect-timeout", "10m"])
        .args(["run", "--runtime", &shim_runtime.runtime])
        .args(&shim_runtime.arguments)
        .args(flags)
        .args([IMAGE, id])
        .args(command);
    run.stdin(Stdio::null());
    run
}

/// Runs `true` in a new container, which `ctr run` starts with `flags`, and waits for its end.
pub fn run_true(shim_runtime: &MeasuredRuntime, flags: &[&str], id: &str) -> Result<()> {
    let flags = [&["--rm"], flags].concat();
    let ran = output(&mut ctr_run(shim_runtime, &flags, id, &["true"])).map(drop);
    if ran.is_err() {
        remove_failed(id);
    }
    ran
}

/// Removes what a `ctr run` that has failed left of container `id`.
fn remove_failed(id: &str) {
    // Errors mean that nothing is left.
    let _ = output(Command::new("ctr").args(["task", "delete", "--force", id]));
    let _ = output(Command::new("ctr").args(["containers", "delete", id]));
}

/// Runs `true` in as many new containers as there are `ids`, all at once, and waits for their ends.
///
/// # Errors
/// If one fails: how many, and what the first one printed. Its containers are removed.
pub fn run_true_at_once(shim_runtime: &MeasuredRuntime, ids: &[String]) -> Result<()> {
    let mut children = Vec::with_capacity(ids.len());
    for id in ids {
        let mut run = ctr_run(shim_runtime, &["--rm"], id, &["true"]);
        run.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = run.spawn().with_context(|| format!("starting {run:?}"))?;
        children.push((id, child));
    }
    let mut failures = Vec::new();
    for (id, child) in children {
        // What one prints fits into its pipe, so it does not wait for those that are read before it.
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            failures.push((id, format!("{}: {text}", output.status)));
        }
    }
    for (id, _) in &failures {
        remove_failed(id);
    }
    if let Some((id, text)) = failures.first() {
        bail!(
            "{} of {} failed, the first one is {id}: {text}",
            failures.len(),
            ids.len()
        );
    }
    Ok(())
}

/// Runs `true` in the running container `id` and waits for its end.
pub fn exec_true(id: &str, exec_id: &str) -> Result<()> {
    let mut exec = Command::new("ctr");
    exec.args(["task", "exec", "--exec-id", exec_id, id, "true"])
        .stdin(Stdio::null());
    output(&mut exec).map(drop)
}

/// Standard output of a command that must succeed.
///
/// # Errors
/// If it does not: with its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the `nacre` command of a build prints with `arguments` and `--json`.
pub fn nacre(build: &Build, arguments: &[&str]) -> Result<Value> {
    let text = output(
        Command::new(build.prefix.join("bin/nacre"))
            .args(arguments)
            .arg("--json"),
    )?;
    serde_json::from_str(&text).with_context(|| format!("parsing the output of nacre {arguments:?}"))
}

/// The entries of all pods in `nacre ps`.
pub fn pods(build: &Build) -> Result<Vec<Value>> {
    let pods = nacre(build, &["ps"])?;
    pods.as_array().cloned().context("nacre ps prints no list")
}

/// The entry of pod `id` in `nacre ps`.
pub fn pod(build: &Build, id: &str) -> Result<Value> {
    let found = pods(build)?.into_iter().find(|pod| pod["id"] == id);
    found.with_context(|| format!("nacre ps does not list {id}"))
}

/// A running container; dropping it ends and removes it.
pub struct Running {
    id: String,
    /// `ctr run --rm`, which ends with the container; None for a detached container.
    ctr: Option<Child>,
    ended: bool,
}

impl Running {
    /// Starts `sh -c script` and waits for its first line of output. A shim_runtime that runs no processes is
    /// not waited for.
    pub fn start(shim_runtime: &MeasuredRuntime, id: &str, script: &str) -> Result<Self> {
        if !shim_runtime.runs_processes {
            return Self::detached(shim_runtime, &[], id, script);
        }
        let mut running = Self {
            id: id.to_owned(),
            ctr: None,
            ended: false,
        };
        let mut run = ctr_run(shim_runtime, &["--rm"], id, &["sh", "-c", script]);
        let mut child = run
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {run:?}"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        running.ctr = Some(child);
        let mut line = String::new();
        if BufReader::new(stdout).read_line(&mut line)? == 0 {
            bail!("{id} ended without a line of output");
        }
        Ok(running)
    }

    /// Starts `sh -c script` by `ctr run -d` with `flags`, which returns once the container's init process is
    /// started.
    pub fn detached(shim_runtime: &MeasuredRuntime, flags: &[&str], id: &str, script: &str) -> Result<Self> {
        let running = Self {
            id: id.to_owned(),
            ctr: None,
            ended: false,
        };
        let flags = [&["-d"], flags].concat();
        output(&mut ctr_run(shim_runtime, &flags, id, &["sh", "-c", script]))?;
        Ok(running)
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Ends the container and waits until it is removed.
    pub fn end(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match self.ctr.take() {
            Some(mut ctr) => {
                output(Command::new("ctr").args(["task", "kill", "-s", "SIGKILL", &self.id]))?;
                ctr.wait()
                    .with_context(|| format!("waiting for ctr run of {}", self.id))?;
            }
            None => {
                output(Command::new("ctr").args(["task", "delete", "--force", &self.id]))?;
                output(Command::new("ctr").args(["containers", "delete", &self.id]))?;
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("nacre-bench: ending {}: {error:#}", self.id);
        }
    }
}
