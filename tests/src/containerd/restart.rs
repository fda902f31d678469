//! The process of the containerd under test. Called by tests that stop it or start it anew.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::wait::{WaitPidFlag, waitpid};

use super::ctr::{DEADLINE, ctr};
use crate::leaks::{send_sigkill, wait_for_exit};

/// The socket of the containerd under test.
///
/// # Errors
/// If this is no lab.
pub fn containerd_address() -> Result<PathBuf> {
    std::env::var_os("CONTAINERD_ADDRESS")
        .map(PathBuf::from)
        .context("CONTAINERD_ADDRESS is not set; run the tests with tests/lab/run")
}

/// containerd's PID, from the peer credentials of its socket.
///
/// # Errors
/// If it does not answer at its socket.
pub fn containerd_pid() -> Result<u32> {
    let stream = UnixStream::connect(containerd_address()?)?;
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(u32::try_from(peer.pid())?)
}

/// Kills containerd and starts it again with the same program, arguments, environment and log.
///
/// # Errors
/// If it does not end, or does not answer again.
pub fn restart_containerd() -> Result<()> {
    Containerd::running()?.restart()
}

/// A containerd that runs, with what it takes to start it again.
#[derive(Debug)]
pub struct Containerd {
    /// Its pid.
    pub pid: u32,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<String>,
    log: File,
}

impl Containerd {
    /// The one under test.
    ///
    /// # Errors
    /// If it does not answer, or its process can't be read.
    pub fn running() -> Result<Self> {
        let pid = containerd_pid()?;
        let strings_of = |file: &str| -> Result<Vec<String>> {
            let bytes = fs::read(format!("/proc/{pid}/{file}"))?;
            Ok(bytes
                .split(|b| *b == 0)
                .filter(|s| !s.is_empty())
                .map(|s| String::from_utf8_lossy(s).into_owned())
                .collect())
        };
        let log = fs::OpenOptions::new()
            .append(true)
            .open(format!("/proc/{pid}/fd/2"))
            .context("containerd's standard error")?;
        Ok(Self {
            pid,
            program: fs::read_link(format!("/proc/{pid}/exe"))?,
            arguments: strings_of("cmdline")?,
            environment: strings_of("environ")?,
            log,
        })
    }

    /// Kills the containerd under test, and starts it again.
    ///
    /// # Errors
    /// If it does not end, or does not answer again.
    pub fn restart(&self) -> Result<()> {
        let pid = containerd_pid()?;
        send_sigkill(pid)?;
        wait_for_exit(pid, Instant::now() + DEADLINE)?;
        reap(pid)?;
        self.start()
    }

    /// Starts containerd again if it was killed.
    ///
    /// # Errors
    /// If it does not answer again.
    pub fn restart_if_killed(&self) -> Result<()> {
        if containerd_pid().is_ok() {
            return Ok(());
        }
        wait_for_exit(self.pid, Instant::now() + DEADLINE)?;
        reap(self.pid)?;
        self.start()
    }

    fn start(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments.iter().skip(1)).env_clear();
        command.envs(self.environment.iter().filter_map(|pair| pair.split_once('=')));
        command
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?)
            .spawn()
            .context("starting containerd again")?;
        wait_for_socket()
    }
}

/// Reaps process `pid`, which has exited, if it is a containerd that this process started.
fn reap(pid: u32) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        // Another process started the first one.
        Ok(_) | Err(nix::errno::Errno::ECHILD) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Runs `ctr version` until containerd answers. ctr itself waits up to 10 s for the socket, so that the loop
/// does not spin.
fn wait_for_socket() -> Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        if ctr(["version"])?.code == Some(0) {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "timed out waiting for containerd to answer after its restart"
        );
    }
}
