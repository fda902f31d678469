//! A peer's VMM while it runs.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::guest::TEMPLATE_READY;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a step of a guest's or of the VMM's may take.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running VMM; ends when dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Executes `command`, which writes to `log` what helps if it fails.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let program = command.get_program().to_owned();
        let child = command.spawn();
        let child = child.with_context(|| format!("executing {}", program.display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `source` is readable, as a listener is that has a connection.
    ///
    /// # Errors
    /// With the end of the log, if the VMM ends instead, or nothing comes in time.
    pub fn wait_readable(&mut self, source: &impl AsFd) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        let mut waiting = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
        // Not longer, to find out if the VMM has ended.
        while poll(&mut waiting, PollTimeout::from(500_u16))? == 0 {
            let status = self.child.try_wait()?;
            ensure!(
                status.is_none() && Instant::now() < until,
                "nothing came on descriptor {}, VMM: {status:?}\n{}",
                source.as_fd().as_raw_fd(),
                std::fs::read_to_string(&self.log).unwrap_or_default()
            );
        }
        Ok(())
    }

    /// The connection of an agent that is prepared, so that its guest can be saved. It must stay open until then: its end
    /// is how the agent learns that its next life begins.
    ///
    /// # Errors
    /// As [`Self::accept`], or if the agent says anything else.
    pub fn accept_prepared(&mut self, listener: &impl AsFd) -> Result<File> {
        let mut stream = self.accept(listener)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        ensure!(
            byte == [TEMPLATE_READY],
            "the agent does not report that it can be saved"
        );
        Ok(stream)
    }

    /// The agent's connection to `listener`.
    ///
    /// # Errors
    /// As [`Self::wait_readable`].
    pub fn accept(&mut self, listener: &impl AsFd) -> Result<File> {
        self.wait_readable(listener).context("no agent connected")?;
        let stream = rustix::net::accept(listener);
        Ok(stream.context("accepting the agent's connection")?.into())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
