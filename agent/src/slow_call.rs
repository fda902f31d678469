//! System calls that may take seconds: writes to a file of a cgroup for which the kernel reclaims memory, mounts of
//! disks, writing what is cached of a disk, and lookups in the shared tree. A forked child makes them while the event
//! loop goes on. Called by `cgroup`, `disk` and `pod`.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use nacre_protocol::control::Channel;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::fork;

/// A child that makes a system call.
pub struct SlowCall {
    child: OwnedFd,
    /// Receives the call's errno, 0 for none; closed without one if the child was killed.
    report: AsyncFd<Channel>,
}

impl SlowCall {
    /// Forks a child that runs `call`, with the descriptors `used` and no other. The reaper waits for the child.
    /// `call` must not allocate: the unit tests have threads, and clone3 does not stop their allocator.
    ///
    /// # Errors
    /// If there can be no child.
    pub fn start<const N: usize>(used: [RawFd; N], call: impl Fn() -> io::Result<()>) -> io::Result<Self> {
        let (report, child_end) = async_fd::channel().map_err(io::Error::other)?;
        let run = || {
            // A container's streams must not stay open for as long as this takes.
            let mut kept = [child_end.as_raw_fd(); 4];
            for (kept, used) in kept.iter_mut().skip(1).zip(used) {
                *kept = used;
            }
            if fork::close_others(&mut kept).is_err() {
                return 1;
            }
            let errno = call().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
            i32::from(rustix::io::write(&child_end, &errno.to_ne_bytes()).is_err())
        };
        const { assert!(N <= 3, "there is room for three descriptors") };
        let pid = fork::plain(run)?;
        Ok(Self {
            child: pidfd_open(pid, PidfdFlags::empty())?,
            report,
        })
    }

    /// As [`SlowCall::start`], and waits until the call has returned.
    ///
    /// # Errors
    /// Those of [`SlowCall::start`] and [`SlowCall::finish`].
    pub async fn run<const N: usize>(used: [RawFd; N], call: impl Fn() -> io::Result<()>) -> io::Result<()> {
        Self::start(used, call)?.finish().await
    }

    /// The child, as a pidfd to kill it with.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn child(&self) -> io::Result<OwnedFd> {
        self.child.try_clone()
    }

    /// Waits until the call has returned.
    ///
    /// # Errors
    /// That of the call; [`io::ErrorKind::Interrupted`] if the child was killed.
    pub async fn finish(self) -> io::Result<()> {
        let mut errno = [0; size_of::<i32>()];
        loop {
            let mut ready = self.report.readable().await?;
            match rustix::io::read(self.report.get_ref(), &mut errno) {
                Ok(0) => return Err(io::ErrorKind::Interrupted.into()),
                Ok(_) => break,
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Kills a [`SlowCall::child`]: the kernel ends the call after what it has just begun, if it can be interrupted.
///
/// # Errors
/// As pidfd_send_signal(2), but not if the child has exited.
pub fn kill(child: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(child, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        result => Ok(result?),
    }
}
