//! Pseudo-terminals, by their descriptors: their size, their other end, their owner. Used for init's terminal, which
//! libcontainer makes, and for those of execs; never looks a terminal up by a name that a container could have changed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Process;
use rustix::fs::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

/// A terminal to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Characters; 0 where nobody has said yet.
    pub width: u16,
    /// Characters; 0 where nobody has said yet.
    pub height: u16,
    /// Its owner.
    pub uid: u32,
}

impl Terminal {
    /// What `process` wants; None where it wants none.
    pub fn wanted(process: &Process) -> Option<Self> {
        let size = process.console_size().unwrap_or_default();
        let characters = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        (process.terminal() == Some(true)).then(|| Self {
            width: characters(size.width()),
            height: characters(size.height()),
            uid: process.user().uid(),
        })
    }

    /// The end for the process of the terminal whose master is `master`: of the right size, its user's, who may open it
    /// by name then.
    pub fn complete(&self, master: &OwnedFd) -> io::Result<OwnedFd> {
        resize(master, self.width, self.height)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(master, flags)?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(self.uid)), None)?;
        Ok(slave)
    }
}

/// Sets the size of a terminal, characters.
pub fn resize(terminal: impl AsFd, width: u16, height: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}
