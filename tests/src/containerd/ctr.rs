//! Runs `ctr` for the tests. Each command has a deadline, and none inherits the test's standard input.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Runtime;

/// The busybox image that `tests/lab/run` imports into containerd.
pub const IMAGE: &str = "docker.io/library/busybox:latest";
/// The deadline of every command. Generous, because emulated hosts need seconds for what others do in
/// milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Ids that [`fresh_id`] returned and [`remove_leftovers`] has not yet checked.
static FRESH_IDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Exit code and output of a command that has exited.
#[derive(Debug)]
pub struct Output {
    /// Exit code; None if a signal killed it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, with invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Standard output, with invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output if the command exited with 0, otherwise an error that contains both streams.
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

/// Returns a unique container id with `word` in it. [`remove_leftovers`] removes the container if its test
/// does not.
pub fn fresh_id(word: &str) -> String {
    let mut ids = FRESH_IDS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let id = format!("e2e-{word}-{}-{}", std::process::id(), ids.len());
    ids.push(id.clone());
    id
}

/// Removes the containers that a failed test left behind, so that the next test starts clean.
pub fn remove_leftovers() {
    let ids = std::mem::take(
        &mut *FRESH_IDS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    );
    let Ok(listed) = ctr(["containers", "list", "-q"]).and_then(Output::success) else {
        return;
    };
    for id in ids.iter().filter(|id| listed.lines().any(|line| line == *id)) {
        // Ignore errors: each command fails if the container is past that step. The leak check reports what
        // remains.
        let _ = ctr(["task", "kill", "-s", "SIGKILL", id]);
        let _ = ctr(["task", "delete", "--force", id]);
        let _ = ctr(["containers", "delete", id]);
    }
}

/// Runs `ctr` with `arguments` to its end.
pub fn ctr<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Output> {
    let mut command = Command::new("ctr");
    command.args(arguments);
    output(command)
}

/// Runs any `command` to its end within [`DEADLINE`], with /dev/null as standard input.
pub fn output(mut command: Command) -> Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    collect(child, DEADLINE).with_context(|| format!("{command:?}"))
}

/// The arguments of a `ctr run`.
#[derive(Debug, Default, Clone)]
pub struct Run<'a> {
    /// Flags of `ctr run`, before the image.
    pub flags: &'a [&'a str],
    /// The command in the container.
    pub command: &'a [&'a str],
    /// A config.json that replaces the image and the command.
    pub config: Option<&'a Path>,
    /// The runtime to use.
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

    /// Runs the container to its end with `ctr run --rm`.
    pub fn output(&self, id: &str) -> Result<Output> {
        output(self.command(id, &["--rm"]))
    }

    /// Starts `ctr run --rm` with pipes for its standard streams.
    pub fn spawn(&self, id: &str) -> Result<Foreground> {
        Foreground::spawn(self.command(id, &["--rm"]), id)
    }

    /// Starts a detached container with `ctr run -d`.
    pub fn detach(&self, id: &str) -> Result<()> {
        self.detached(id)?.success().map(drop)
    }

    /// As [`Run::detach`]; returns what ctr says, also if it fails.
    pub fn detached(&self, id: &str) -> Result<Output> {
        output(self.command(id, &["-d"]))
    }
}

/// Kills the task of a detached container, if it runs, and removes the container.
pub fn remove_detached(id: &str) -> Result<()> {
    ctr(["task", "delete", "--force", id])?;
    ctr(["containers", "delete", id])?.success().map(drop)
}

/// Runs `ctr task list` until it shows the task as stopped. ctr has no call that waits for a task it did not
/// start; a new connection for each call keeps the loop from spinning.
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
        ensure!(
            Instant::now() < until,
            "task {id} did not stop within the deadline: {listed}"
        );
    }
}

/// Runs `sh -c script` to its end in a new container with `ctr run --rm` under Nacre; `word` is part of its
/// id.
pub fn shell(word: &str, script: &str) -> Result<Output> {
    Run {
        command: &["sh", "-c", script],
        ..Run::default()
    }
    .output(&fresh_id(word))
}

/// A running `ctr` process whose standard streams are pipes.
pub struct Foreground {
    child: Child,
    /// The container's id.
    pub id: String,
    /// ctr's standard input; dropping it closes it.
    pub stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Foreground {
    /// Starts `ctr` with `arguments`; `id` is the container that they name.
    ///
    /// # Errors
    /// If ctr can't be started.
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

    /// Reads a line of standard output within [`DEADLINE`]. Tests read one to know that the container's
    /// command runs.
    pub fn line(&mut self) -> Result<String> {
        let stdout = self.stdout.as_mut().context("standard output was taken")?;
        let until = Instant::now() + DEADLINE;
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") {
            wait_readable(stdout, until).with_context(|| {
                format!(
                    "waiting for a line from {}; read so far: {:?}",
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
                    "{}: standard output ended after {:?}\nstderr: {errors}",
                    self.id,
                    String::from_utf8_lossy(&line)
                );
            }
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Whether standard output becomes readable before `until`.
    pub fn readable(&self, until: Instant) -> bool {
        self.stdout
            .as_ref()
            .is_some_and(|stdout| wait_readable(stdout, until).is_ok())
    }

    /// Kills ctr, not the container.
    pub fn kill_ctr(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Writes `line` and a newline to standard input.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input was taken")?;
        Ok(stdin.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Writes `bytes` to standard input in a new thread, then closes it.
    pub fn feed(&mut self, bytes: Vec<u8>) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
        let mut stdin = self.stdin.take().context("standard input was taken")?;
        Ok(std::thread::spawn(move || stdin.write_all(&bytes)))
    }

    /// Closes standard input and waits for ctr to exit; returns the output that was not read before.
    pub fn wait_with_output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        self.child.stdout = self.stdout.take();
        let id = self.id.clone();
        collect(self.child, DEADLINE).with_context(|| format!("ctr for {id}"))
    }

    /// Sends a signal to the container's first process.
    pub fn kill(&self, signal: &str) -> Result<()> {
        ctr(["task", "kill", "-s", signal, &self.id])?.success().map(drop)
    }
}

/// Waits until `source` is readable or at end of file.
pub fn wait_readable(source: &impl std::os::fd::AsFd, until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut fds, timeout)? == 1, "timed out: nothing to read");
    Ok(())
}

/// Reads both streams to end of file and waits for `child`; kills it if that takes longer than `within`.
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
                "timed out after {} s and was killed\nstdout: {}\nstderr: {}",
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
