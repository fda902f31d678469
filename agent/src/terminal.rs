//! Pseudoterminals (pty(7)): window size, slave end, owner. Used for the terminals of inits and
//! of exec processes. Works on descriptors only: a path such as /dev/pts/0 could be
//! replaced by the container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Process;
use rustix::fs::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

/// The terminal that a process object asks for (`process.terminal`, `process.consoleSize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Columns; 0 if the spec has no size.
    pub width: u16,
    /// Rows; 0 if the spec has no size.
    pub height: u16,
    /// The user that owns the slave.
    pub uid: u32,
}

impl Terminal {
    /// The terminal that `process` asks for, or None if `process.terminal` is not true.
    pub fn wanted(process: &Process) -> Option<Self> {
        let size = process.console_size().unwrap_or_default();
        let characters = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        (process.terminal() == Some(true)).then(|| Self {
            width: characters(size.width()),
            height: characters(size.height()),
            uid: process.user().uid(),
        })
    }

    /// Opens the slave of the terminal whose master is `master` (TIOCGPTPEER), sets the window size, and
    /// makes the user its owner, so that the process may open it by its name, too.
    pub fn open_slave(&self, master: &OwnedFd) -> io::Result<OwnedFd> {
        resize(master, self.width, self.height)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(master, flags)?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(self.uid)), None)?;
        Ok(slave)
    }
}

/// Sets a terminal's window size, in columns and rows (TIOCSWINSZ).
pub fn resize(terminal: impl AsFd, width: u16, height: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}
