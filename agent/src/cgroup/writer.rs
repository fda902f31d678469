//! Writes to a file of a cgroup whose write(2) reclaims memory before it returns (memory.high, memory.max). That
//! may take seconds, so a forked child does it while the event loop goes on. Called by `memory` and for updates
//! of a container's limits.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nacre_protocol::control::Channel;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::async_fd;
use crate::fork;

/// A child that writes to a file.
pub struct Writer {
    child: OwnedFd,
    /// Receives the errno of write(2), 0 for none; closed without one if the child was killed.
    report: AsyncFd<Channel>,
}

impl Writer {
    /// Starts to write `text` to `file`. The reaper waits for the child.
    pub fn start(file: &Path, text: &str) -> io::Result<Self> {
        let opened = File::options().write(true).open(file)?;
        let (report, child_end) = async_fd::channel().map_err(io::Error::other)?;
        // Without an allocation: the unit tests have threads, and clone3 does not stop their allocator.
        let write = || {
            // A container's streams must not stay open for as long as this takes.
            let mut kept = [opened.as_raw_fd(), child_end.as_raw_fd()];
            if fork::close_others(&mut kept).is_err() {
                return 1;
            }
            let written = (&opened).write_all(text.as_bytes());
            let errno = written.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
            i32::from(rustix::io::write(&child_end, &errno.to_ne_bytes()).is_err())
        };
        let pid = fork::plain(write)?;
        Ok(Self {
            child: pidfd_open(pid, PidfdFlags::empty())?,
            report,
        })
    }

    /// The child, as a pidfd to kill it with.
    pub fn child(&self) -> io::Result<OwnedFd> {
        self.child.try_clone()
    }

    /// Waits until write(2) has returned.
    ///
    /// # Errors
    /// That of write(2); [`io::ErrorKind::Interrupted`] if the child was killed.
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

/// Kills a [`Writer::child`]: the kernel stops to reclaim after what it has just begun.
pub fn kill(child: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(child, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        result => Ok(result?),
    }
}

/// A full pipe, to which a write blocks as one that reclaims does.
#[cfg(test)]
pub mod full_pipe {
    use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;

    use rustix::fs::{OFlags, fcntl_setfl};

    pub struct FullPipe {
        reader: PipeReader,
        writer: PipeWriter,
        length: usize,
    }

    impl FullPipe {
        pub fn new() -> Self {
            let (reader, mut writer) = pipe().unwrap();
            fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
            let mut length = 0;
            while let Ok(count) = writer.write(&[b'.'; 4096]) {
                length += count;
            }
            Self {
                reader,
                writer,
                length,
            }
        }

        /// The file. A writer opens it again, without O_NONBLOCK.
        pub fn path(&self) -> PathBuf {
            format!("/proc/self/fd/{}", self.writer.as_raw_fd()).into()
        }

        /// Empties the pipe.
        pub fn empty(&mut self) {
            self.reader.read_exact(&mut vec![0; self.length]).unwrap();
        }

        /// What was written to the emptied pipe.
        pub fn written(mut self) -> String {
            drop(self.writer);
            let mut text = String::new();
            self.reader.read_to_string(&mut text).unwrap();
            text
        }
    }
}
