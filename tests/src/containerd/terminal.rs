//! A terminal and a command on it, as a person would sit at one.

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
    /// Everything that was shown.
    shown: String,
    /// How much of it was waited for.
    seen: usize,
}

impl Terminal {
    /// Starts `ctr` with `arguments` on a terminal of 24 rows and 80 columns.
    ///
    /// # Errors
    /// Where no terminal can be had, or no ctr.
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
            shown: String::new(),
            seen: 0,
        })
    }

    /// Waits until `words` are shown, after those that were waited for before.
    ///
    /// # Errors
    /// Where they don't come within the deadline, or the command ends before.
    pub fn expect(&mut self, words: &str) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            let rest = self.shown.get(self.seen..).unwrap_or_default();
            if let Some(at) = rest.find(words) {
                self.seen += at + words.len();
                return Ok(());
            }
            if !self
                .more(until)
                .with_context(|| format!("waiting for {words:?}; shown: {:?}", self.shown))?
            {
                bail!("ended before it showed {words:?}: {:?}", self.shown);
            }
        }
    }

    /// Types `keys`.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.master, rows, columns)
    }

    /// Waits until the command ends; gives its exit code and all that was shown.
    ///
    /// # Errors
    /// Where it does not end within the deadline.
    pub fn finish(mut self) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + DEADLINE;
        while self
            .more(until)
            .with_context(|| format!("waiting for the end; shown: {:?}", self.shown))?
        {}
        let status = self.child.wait()?;
        Ok((status.code(), std::mem::take(&mut self.shown)))
    }

    /// Reads what is shown next; false at the end.
    fn more(&mut self, until: Instant) -> Result<bool> {
        wait_readable(&self.master, until)?;
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
                Ok(true)
            }
            // The last user of the other end has gone.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that ended was waited for, and both calls then fail.
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
