//! Waits for containerd's socket to appear (inotify on its directory), so that a restarted containerd gets
//! the events that it missed without polling.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nacre_pod::{log, sys};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Reports that a socket appears at a path.
pub struct SocketWatch {
    inotify: AsyncFd<OwnedFd>,
    name: OsString,
}

impl SocketWatch {
    /// Watches the directory of `socket`; None, and a line in the log, if that is not possible.
    pub fn new(socket: &Path) -> Option<Self> {
        let made = || -> std::io::Result<SocketWatch> {
            let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // ATTRIB, because containerd sets the socket's owner and mode after it has begun to listen.
            let events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB;
            inotify::add_watch(&inotify, socket.parent().unwrap_or(Path::new("/")), events)?;
            Ok(SocketWatch {
                inotify: sys::watch(inotify)?,
                name: socket.file_name().unwrap_or_default().to_owned(),
            })
        };
        made()
            .inspect_err(|error| log::warn(format_args!("watching for {}: {error}", socket.display())))
            .ok()
    }

    /// Waits until the socket appears, or until watching fails.
    pub async fn wait(&self) {
        while let Ok(mut ready) = self.inotify.readable().await {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
            loop {
                match events.next() {
                    Ok(event)
                        if event
                            .file_name()
                            .is_some_and(|name| name.to_bytes() == self.name.as_bytes()) =>
                    {
                        return;
                    }
                    Ok(_) => {}
                    Err(rustix::io::Errno::AGAIN) => break ready.clear_ready(),
                    // Without a watch nothing would end the wait, so the caller tries to connect now.
                    Err(_) => return,
                }
            }
        }
    }
}
