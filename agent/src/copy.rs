//! Copies bytes between two non-blocking descriptors in the event loop. Used for the standard streams of a
//! process and for forwarded connections; never buffers more than one chunk, and never interprets a byte.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{SpliceFlags, splice};
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;

/// Most bytes moved by one system call: the capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// A source and the sink that its bytes go to.
pub struct Pair {
    /// The descriptor read from.
    pub from: AsyncFd<OwnedFd>,
    /// The descriptor written to.
    pub to: AsyncFd<OwnedFd>,
}

impl Pair {
    /// Copies until the source ends, by read(2) and write(2) of up to [`CHUNK`] bytes.
    pub async fn copy(&self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let mut source = self.from.readable().await?;
            let length = match rustix::io::read(&self.from, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(rustix::io::Errno::AGAIN) => {
                    source.clear_ready();
                    continue;
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.write_all(buffer.get(..length).unwrap_or_default()).await?;
            // Two ends that never block must not keep the agent from everything else.
            consume_budget().await;
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut sink = self.to.writable().await?;
            match rustix::io::write(&self.to, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::AGAIN) => sink.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Splices until the source ends or nobody reads the sink any more.
    pub async fn splice(&self) -> io::Result<()> {
        while self.splice_once().await? > 0 {
            // As above.
            consume_budget().await;
        }
        Ok(())
    }

    /// Waits until both ends are ready, splices once, and returns the number of bytes; 0 at the end of the
    /// source. Safe to cancel: no byte is lost if this future is dropped.
    async fn splice_once(&self) -> io::Result<usize> {
        loop {
            let mut source = self.from.readable().await?;
            let mut sink = self.to.writable().await?;
            match splice(
                &self.from,
                None,
                &self.to,
                None,
                CHUNK,
                SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
            ) {
                Err(rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::INTR) => continue,
                result => return result.map_err(io::Error::from),
            }
            // EAGAIN does not say which of the two is not ready.
            let (readable, writable) = (
                is_ready(&self.from, PollFlags::IN),
                is_ready(&self.to, PollFlags::OUT),
            );
            if !readable {
                source.clear_ready();
            }
            if !writable {
                sink.clear_ready();
            }
            if readable && writable {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn is_ready(fd: &AsyncFd<OwnedFd>, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, events)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use crate::async_fd;

    /// An eventfd can be read as often as its counter says, and written nearly for ever.
    #[test]
    fn two_ends_that_never_block_leave_time_for_others() {
        const READS: u32 = 100_000;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let from = EventFd::from_value_and_flags(READS, flags | EfdFlags::EFD_SEMAPHORE).unwrap();
        let to = EventFd::from_flags(flags).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let copied = runtime.block_on(async {
            let pair = Pair {
                from: async_fd::register(from.into()).unwrap(),
                to: async_fd::register(to.into()).unwrap(),
            };
            tokio::select! {
                biased;
                result = pair.copy() => panic!("{result:?}"),
                () = tokio::task::yield_now() => {}
            }
            let mut counter = [0; 8];
            rustix::io::read(&pair.to, &mut counter).unwrap();
            u64::from_ne_bytes(counter)
        });
        assert!((1..READS.into()).contains(&copied), "{copied}");
    }
}
