//! A pseudo-terminal with `ctr` as its foreground process, for tests that act like an interactive user.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::ctr::{DEADLINE, wait_readable};

/// A terminal with `ctr` in its foreground.
pub struct Terminal {
    master: File,
    child: Child,
    /// Everything that the terminal has printed.
    output: String,
    /// Length of the part of `output` that [`Self::expect`] has matched.
    matched: usize,
}

impl Terminal {
    /// Starts `ctr` with `arguments` on a terminal of 24 rows and 80 columns.
    ///
    /// # Errors
    /// If no pseudo-terminal can be opened, or ctr can't be started.
    pub fn ctr(arguments: &[&str]) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        set_size(&master, 24, 80)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = OpenOptions::new().read(true).write(true).open(name.to_str()?)?;
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--", "ctr"]).args(arguments);
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        let child = command.spawn().context("starting setsid")?;
        Ok(Self {
            master: File::from(master),
            child,
            output: String::new(),
            matched: 0,
        })
    }

    /// Waits until `text` is printed, after the text that was matched before.
    ///
    /// # Errors
    /// If it is not printed within the deadline, or the command exits first.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            let rest = self.output.get(self.matched..).unwrap_or_default();
            if let Some(at) = rest.find(text) {
                self.matched += at + text.len();
                return Ok(());
            }
            if !self
                .read_more(until)
                .with_context(|| format!("waiting for {text:?}; printed so far: {:?}", self.output))?
            {
                bail!(
                    "ctr exited before {text:?} was printed; printed: {:?}",
                    self.output
                );
            }
        }
    }

    /// Types `keys`.
    ///
    /// # Errors
    /// If the terminal was closed.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// If the terminal was closed.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.master, rows, columns)
    }

    /// Waits until the command exits; returns its exit code and everything that was printed.
    ///
    /// # Errors
    /// If it does not exit within the deadline.
    pub fn wait_with_output(mut self) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + DEADLINE;
        while self
            .read_more(until)
            .with_context(|| format!("waiting for ctr to exit; printed so far: {:?}", self.output))?
        {}
        let status = self.child.wait()?;
        Ok((status.code(), std::mem::take(&mut self.output)))
    }

    /// Reads what is printed next; returns false at end of file.
    fn read_more(&mut self, until: Instant) -> Result<bool> {
        wait_readable(&self.master, until)?;
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.output.push_str(&String::from_utf8_lossy(&buffer[..length]));
                Ok(true)
            }
            // The last process that had the other end open has closed it.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ignore errors: both calls fail if wait_with_output has reaped the child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl std::os::fd::AsFd, ws_row: u16, ws_col: u16) -> Result<()> {
    let (ws_xpixel, ws_ypixel) = (0, 0);
    Ok(tcsetwinsize(
        terminal,
        Winsize {
            ws_row,
            ws_col,
            ws_xpixel,
            ws_ypixel,
        },
    )?)
}
