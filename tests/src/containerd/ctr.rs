//! `ctr` as the tests use it: every call has a deadline, no call inherits standard input.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Runtime;

/// The image that `tests/lab/run` imports.
pub const IMAGE: &str = "docker.io/library/busybox:latest";
/// Emulated hosts take seconds for what others do in milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Containers that tests made, for removal after a failed one.
static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a finished command gave.
#[derive(Debug)]
pub struct Output {
    /// Exit code; None where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output of a command that exited with 0.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.code == Some(0),
            "exit code {:?}\nstdout: {}\nstderr: {}",
            self.code,
            self.text(),
            self.stderr
        );
        Ok(self.text())
    }
}

/// A fresh id for a container whose test failed halfway is removed by [`remove_leftovers`].
pub fn fresh_id(word: &str) -> String {
    let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let id = format!("e2e-{word}-{}-{}", std::process::id(), made.len());
    made.push(id.clone());
    id
}

/// Ends what a failed test left running, so that the next starts clean. A passed test leaves nothing to do.
pub fn remove_leftovers() {
    let made = std::mem::take(&mut *MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let Ok(listed) = ctr(["containers", "list", "-q"]).and_then(Output::success) else {
        return;
    };
    for id in made.iter().filter(|id| listed.lines().any(|line| line == *id)) {
        // Each may fail where the state in between is what the test is about; the leak check has the last word.
        let _ = ctr(["task", "kill", "-s", "SIGKILL", id]);
        let _ = ctr(["task", "delete", "--force", id]);
        let _ = ctr(["containers", "delete", id]);
    }
}

/// `ctr` with `arguments`, to its end.
pub fn ctr<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Output> {
    let mut command = Command::new("ctr");
    command.args(arguments);
    finish(command)
}

/// Runs any `command` to its end within [`DEADLINE`].
pub fn finish(mut command: Command) -> Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    collect(child, DEADLINE).with_context(|| format!("{command:?}"))
}

/// What a container is to be run with.
#[derive(Debug, Default, Clone)]
pub struct Run<'a> {
    /// Flags of `ctr run`, before the image.
    pub flags: &'a [&'a str],
    /// The command in the container.
    pub command: &'a [&'a str],
    /// A whole specification in place of the image and the command.
    pub config: Option<&'a Path>,
    /// Who runs it.
    pub runtime: Runtime,
}

impl Run<'_> {
    fn command(&self, id: &str, mode: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .args(["run", "--runtime", self.runtime.name()])
            .args(mode)
            .args(self.flags);
        match self.config {
            Some(file) => command.arg("--config").arg(file).arg(id),
            None => command.args([IMAGE, id]).args(self.command),
        };
        command
    }

    /// `ctr run --rm`, to its end.
    pub fn finish(&self, id: &str) -> Result<Output> {
        finish(self.command(id, &["--rm"]))
    }

    /// `ctr run --rm` in the background, with its streams.
    pub fn spawn(&self, id: &str) -> Result<Foreground> {
        Foreground::spawn(self.command(id, &["--rm"]), id)
    }

    /// `ctr run -d`: the container goes on.
    pub fn detach(&self, id: &str) -> Result<()> {
        finish(self.command(id, &["-d"]))?.success().map(drop)
    }
}

/// Ends a detached container and removes it; gives its exit code.
pub fn remove_detached(id: &str) -> Result<()> {
    ctr(["task", "delete", "--force", id])?;
    ctr(["containers", "delete", id])?.success().map(drop)
}

/// Asks until containerd lists the task as stopped; each question costs ctr a connection, so this does not spin.
pub fn wait_until_stopped(id: &str) -> Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let listed = ctr(["task", "list"])?.success()?;
        if listed
            .lines()
            .any(|line| line.starts_with(id) && line.contains("STOPPED"))
        {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the task never stops: {listed}");
    }
}

/// `sh -c script` in a fresh container under `ctr run --rm`.
pub fn shell(word: &str, script: &str) -> Result<Output> {
    Run {
        command: &["sh", "-c", script],
        ..Run::default()
    }
    .finish(&fresh_id(word))
}

/// A `ctr run --rm` that goes on, with its standard streams.
pub struct Foreground {
    child: Child,
    /// The container's id.
    pub id: String,
    /// Standard input of ctr; dropping it is end of file.
    pub stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Foreground {
    /// `ctr` with `arguments`, which concern the container `id`.
    ///
    /// # Errors
    /// Where ctr can't be started.
    pub fn ctr(arguments: &[&str], id: &str) -> Result<Self> {
        let mut command = Command::new("ctr");
        command.args(arguments);
        Self::spawn(command, id)
    }

    fn spawn(mut command: Command, id: &str) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        Ok(Self {
            child,
            id: id.to_owned(),
            stdin,
            stdout,
        })
    }

    /// Reads a line of standard output; the container says so that it is there.
    pub fn line(&mut self) -> Result<String> {
        let stdout = self.stdout.as_mut().context("standard output was taken")?;
        let until = Instant::now() + DEADLINE;
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") {
            wait_readable(stdout, until).with_context(|| {
                format!(
                    "waiting for a line of {}; so far: {:?}",
                    self.id,
                    String::from_utf8_lossy(&line)
                )
            })?;
            if stdout.read(&mut byte)? == 0 {
                let mut errors = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    stderr.read_to_string(&mut errors)?;
                }
                bail!(
                    "{}: output ended at {:?}\nstderr: {errors}",
                    self.id,
                    String::from_utf8_lossy(&line)
                );
            }
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Whether there is something to read before `until`.
    pub fn readable(&self, until: Instant) -> bool {
        self.stdout
            .as_ref()
            .is_some_and(|stdout| wait_readable(stdout, until).is_ok())
    }

    /// Ends it, whatever it does.
    pub fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Writes all of `bytes` to standard input in a thread, and closes it.
    pub fn feed(&mut self, bytes: Vec<u8>) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
        let mut stdin = self.stdin.take().context("standard input was taken")?;
        Ok(std::thread::spawn(move || stdin.write_all(&bytes)))
    }

    /// The rest of its output, to its end.
    pub fn finish(mut self) -> Result<Output> {
        drop(self.stdin.take());
        self.child.stdout = self.stdout.take();
        let id = self.id.clone();
        collect(self.child, DEADLINE).with_context(|| format!("ctr run of {id}"))
    }

    /// Sends a signal to the container's first process.
    pub fn kill(&self, signal: &str) -> Result<()> {
        ctr(["task", "kill", "-s", signal, &self.id])?.success().map(drop)
    }
}

/// Waits until `source` can be read or has ended.
pub fn wait_readable(source: &impl std::os::fd::AsFd, until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut fds, timeout)? == 1, "nothing came within the deadline");
    Ok(())
}

/// Reads both streams to their ends and waits; kills the child at the deadline.
fn collect(mut child: Child, within: Duration) -> Result<Output> {
    let until = Instant::now() + within;
    let mut streams = [Vec::new(), Vec::new()];
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let mut buffer = vec![0; 64 * 1024];
    while stdout.is_some() || stderr.is_some() {
        let mut fds = Vec::new();
        let mut which = Vec::new();
        for (index, fd) in [
            stdout.as_ref().map(|s| s.as_fd()),
            stderr.as_ref().map(|s| s.as_fd()),
        ]
        .into_iter()
        .enumerate()
        {
            if let Some(fd) = fd {
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
                which.push(index);
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
            child.kill()?;
            child.wait()?;
            bail!(
                "not done within {} s, killed\nstdout: {}\nstderr: {}",
                within.as_secs(),
                String::from_utf8_lossy(&streams[0]),
                String::from_utf8_lossy(&streams[1])
            );
        }
        let ready: Vec<usize> = fds
            .iter()
            .zip(which)
            .filter(|(fd, _)| fd.any() == Some(true))
            .map(|(_, index)| index)
            .collect();
        for index in ready {
            let length = match index {
                0 => stdout.as_mut().map_or(Ok(0), |s| s.read(&mut buffer))?,
                _ => stderr.as_mut().map_or(Ok(0), |s| s.read(&mut buffer))?,
            };
            streams[index].extend_from_slice(&buffer[..length]);
            if length == 0 && index == 0 {
                stdout = None;
            } else if length == 0 {
                stderr = None;
            }
        }
    }
    let status = child.wait()?;
    let [stdout, stderr] = streams;
    Ok(Output {
        code: status.code(),
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}
