//! `ctr` and `nacre` as the benchmark calls them. A container that was started is removed again, whatever happens.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::IMAGE;
use serde_json::Value;

/// An id that no other container of this machine has.
pub fn id(word: &str, number: usize) -> String {
    format!("bench-{word}-{}-{number}", std::process::id())
}

/// `ctr run` with `flags`, for the caller to start.
fn ctr_run(runtime: Runtime, flags: &[&str], id: &str, command: &[&str]) -> Command {
    let mut run = Command::new("ctr");
    run.args(["run", "--runtime", runtime.name()])
        .args(flags)
        .args([IMAGE, id])
        .args(command);
    run.stdin(Stdio::null());
    run
}

/// Runs `true` in a container, to its end.
pub fn run_true(runtime: Runtime, id: &str) -> Result<()> {
    output(&mut ctr_run(runtime, &["--rm"], id, &["true"])).map(drop)
}

/// Runs `true` in the container `id`, to its end.
pub fn exec_true(id: &str, exec_id: &str) -> Result<()> {
    let mut exec = Command::new("ctr");
    exec.args(["task", "exec", "--exec-id", exec_id, id, "true"])
        .stdin(Stdio::null());
    output(&mut exec).map(drop)
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<String> {
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

/// `nacre` with `arguments` and `--json`.
pub fn nacre(arguments: &[&str]) -> Result<Value> {
    let text = output(Command::new("nacre").args(arguments).arg("--json"))?;
    serde_json::from_str(&text).with_context(|| format!("what nacre {arguments:?} printed"))
}

/// A container that goes on until it is dropped.
pub struct Running {
    id: String,
    ctr: Option<Child>,
}

impl Running {
    /// Starts `sh -c script` and waits for the first line that it prints.
    pub fn start(runtime: Runtime, id: &str, script: &str) -> Result<Self> {
        let mut command = ctr_run(runtime, &["--rm"], id, &["sh", "-c", script]);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let running = Self {
            id: id.to_owned(),
            ctr: Some(child),
        };
        let mut line = String::new();
        if BufReader::new(stdout).read_line(&mut line)? == 0 {
            bail!("{id} ended without a line");
        }
        Ok(running)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Ends it and waits until it is gone.
    pub fn end(mut self) -> Result<()> {
        self.kill()
    }

    fn kill(&mut self) -> Result<()> {
        let Some(mut ctr) = self.ctr.take() else {
            return Ok(());
        };
        output(Command::new("ctr").args(["task", "kill", "-s", "SIGKILL", &self.id]))?;
        ctr.wait()
            .with_context(|| format!("waiting for ctr run of {}", self.id))?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("nacre-bench: ending {}: {error:#}", self.id);
        }
    }
}
