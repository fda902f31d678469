//! The terminal of a container's init: libcontainer opens it in the container and sends its master to a
//! socket, as runc does with `--console-socket`. This module receives the master and sets the terminal's size
//! and owner before init executes the command. Only the helper uses it.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::terminal::Terminal;

/// A listening socket for a terminal's master.
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
    terminal: Terminal,
}

/// Listens in `directory` for the master of a terminal that gets the size and owner of `terminal`.
pub fn listen(directory: &Path, terminal: Terminal) -> io::Result<Console> {
    let path = directory.join("console");
    Ok(Console {
        listener: UnixListener::bind(&path)?,
        path,
        terminal,
    })
}

impl Console {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the master, which libcontainer sent before init began to wait for the start notification.
    pub fn receive(self) -> io::Result<OwnedFd> {
        // Without blocking: a master that has not arrived by now never will.
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
        let master =
            master.ok_or_else(|| io::Error::other("libcontainer sent no terminal to the console socket"))?;
        self.terminal.open_slave(&master)?;
        Ok(master)
    }
}
