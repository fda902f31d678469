//! Waits until a FIFO's reader has read all that is in it. For the end of an output: a reader may close its
//! end as soon as it knows that the process has exited, and loses what it has not read by then. The kernel
//! does not report that a FIFO is empty, but inotify reports each read.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::ioctl_fionread;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Waits until the FIFO of the writing end `writer` is empty or has no reader; calls `moved` after each read.
pub async fn until_read(writer: &AsyncFd<OwnedFd>, moved: impl Fn()) -> io::Result<()> {
    if is_read(writer)? {
        return Ok(());
    }
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&inotify, path(writer), WatchFlags::ACCESS)?;
    let reads = sys::watch(inotify)?;
    while !is_read(writer)? {
        tokio::select! {
            ready = reads.readable() => {
                let mut ready = ready?;
                // At most one event: the kernel merges events that are alike.
                match rustix::io::read(&reads, &mut [0_u8; 4096]) {
                    Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                    Err(error) => return Err(error.into()),
                }
                ready.clear_ready();
                moved();
            }
            // The last reader closes its end.
            ready = writer.writable() => ready?.clear_ready(),
        }
    }
    Ok(())
}

/// Opens the reading end of the FIFO of `writer`.
pub fn open_reader(writer: &AsyncFd<OwnedFd>) -> io::Result<File> {
    File::open(path(writer))
}

/// By the descriptor: the caller may have removed the FIFO's name.
fn path(writer: &AsyncFd<OwnedFd>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()))
}

fn is_read(writer: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    if ioctl_fionread(writer)? == 0 {
        return Ok(true);
    }
    let mut fds = [PollFd::new(writer, PollFlags::empty())];
    let without_reader = poll(&mut fds, Some(&Timespec::default()))? > 0;
    Ok(without_reader)
}
