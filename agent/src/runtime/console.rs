//! The terminal of a container's init: libcontainer makes it in the container and sends its master to a socket
//! (`console-socket`, as runc has it); here it gets its size and its owner, before init runs. Used by the helper alone.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::terminal::Terminal;

/// A socket that waits for a terminal's master.
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
    terminal: Terminal,
}

/// Listens in `directory` for the master of a terminal that is to be like `terminal`.
pub fn listen(directory: &Path, terminal: Terminal) -> io::Result<Console> {
    let path = directory.join("console");
    Ok(Console {
        listener: UnixListener::bind(&path)?,
        path,
        terminal,
    })
}

impl Console {
    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The master, which has been sent: init is set up.
    pub fn receive(self) -> io::Result<OwnedFd> {
        // Sent or not, nothing more comes: init waits at its gate.
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        let mut byte = [0; 16];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut byte)],
            &mut rights,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        let master = rights.drain().find_map(|message| {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                fds.next()
            } else {
                None
            }
        });
        let master = master.ok_or_else(|| io::Error::other("no terminal came with its message"))?;
        self.terminal.open_slave(&master)?;
        Ok(master)
    }
}
