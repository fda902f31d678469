//! Forked processes of the behaviours: each runs a function and returns its text through a pipe. Used by the
//! behaviours and by the program that runs them, which has one thread. Never used in a test harness, whose
//! other threads may hold locks.

#![allow(unsafe_code, reason = "fork has no safe form")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setgroups, setresgid, setresuid};

/// Bound for a child, and so for a behaviour. The slowest takes a few seconds under emulation.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of text that a child may return.
const MAX_TEXT: usize = 64 * 1024;

/// A running child, killed and reaped on drop.
pub struct Child {
    pid: Pid,
    text: File,
    reaped: bool,
}

impl Child {
    /// Starts a child that runs `body`. An error of `body` becomes its text.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(body: impl FnOnce() -> Result<String>) -> Result<Self> {
        let (reader, writer) = nix::unistd::pipe()?;
        // SAFETY: this process has one thread, so the child can call any function; it never returns.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                text: File::from(reader),
                reaped: false,
            }),
            ForkResult::Child => {
                drop(reader);
                let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| report(writer, body)));
                // SAFETY: _exit has no precondition.
                unsafe { libc::_exit(i32::from(!matches!(passed, Ok(Ok(()))))) }
            }
        }
    }

    /// The child's pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the child's end; returns its text, followed by the name of the signal that killed it.
    ///
    /// # Errors
    /// If it runs for longer than a minute, prints too much, or panics.
    pub fn finish(mut self) -> Result<String> {
        let mut text = self.read_text()?;
        self.reaped = true;
        let status = waitpid(self.pid, None)?;
        if let WaitStatus::Signaled(_, signal, _) = status {
            text.push_str(signal.as_str());
        } else if !matches!(status, WaitStatus::Exited(_, 0)) {
            bail!("the child ended with {status:?}");
        }
        Ok(text)
    }

    fn read_text(&mut self) -> Result<String> {
        let until = Instant::now() + DEADLINE;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.text.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
                bail!("not finished after {} s", DEADLINE.as_secs());
            }
            let length = self.text.read(&mut buffer)?;
            bytes.extend_from_slice(&buffer[..length]);
            if length == 0 {
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            if bytes.len() > MAX_TEXT {
                bail!("more than {MAX_TEXT} bytes of text");
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // Ignore errors: the child may have exited already.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

fn report(writer: OwnedFd, body: impl FnOnce() -> Result<String>) -> std::io::Result<()> {
    let text = body().unwrap_or_else(|error| format!("failed: {error:#}"));
    File::from(writer).write_all(text.as_bytes())
}

/// Runs `body` in a child to its end; returns its text.
///
/// # Errors
/// Those of [`Child`].
pub fn in_child(body: impl FnOnce() -> Result<String>) -> Result<String> {
    Child::start(body)?.finish()
}

/// Runs `body` in a child with this user and group, the supplementary groups `groups`, and no capabilities.
///
/// # Errors
/// Those of [`Child`].
pub fn as_user(uid: u32, gid: u32, groups: &[u32], body: impl FnOnce() -> Result<String>) -> Result<String> {
    in_child(|| {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        body()
    })
}
