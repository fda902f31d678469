//! Copies between a client's TCP connection and a stream of the guest, both ways, by splice(2) through a pipe
//! each, so that bytes stay in the kernel. A side that does not read fills the pipe, and the other side is
//! then no longer read. Never looks at a byte.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::splice::splice_once;
use crate::sys;

/// Copies between `client` and `stream`, both non-blocking, until both directions have ended. The end of one
/// is passed on while the other goes on.
///
/// # Errors
/// If one of the two is reset.
pub async fn relay(client: &AsyncFd<OwnedFd>, stream: OwnedFd) -> io::Result<()> {
    let stream = sys::watch(stream)?;
    tokio::try_join!(copy(client, &stream), copy(&stream, client))?;
    Ok(())
}

async fn copy(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    loop {
        // The pipe is empty, so that only `from` can block.
        let mut left = splice_when(from, Interest::READABLE, from.get_ref(), &writer).await?;
        if left == 0 {
            return match shutdown(to.get_ref(), Shutdown::Write) {
                // The other side has closed the connection since.
                Ok(()) | Err(Errno::NOTCONN) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        while left > 0 {
            // The pipe is not empty, so that only `to` can block.
            let moved = splice_when(to, Interest::WRITABLE, &reader, to.get_ref()).await?;
            left = left.saturating_sub(moved);
        }
        // A connection that never blocks must not keep the only thread from other tasks.
        tokio::task::yield_now().await;
    }
}

/// Splices once, when the end that can block, `side`, is ready; returns the number of bytes.
async fn splice_when(
    side: &AsyncFd<OwnedFd>,
    interest: Interest,
    from: impl AsFd,
    to: impl AsFd,
) -> io::Result<usize> {
    loop {
        let mut ready = side.ready(interest).await?;
        match splice_once(&from, &to)? {
            Some(length) => return Ok(length),
            None => ready.clear_ready(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// A client, a guest, and the ends of their connections that are relayed.
    fn connections() -> (TcpStream, UnixStream, AsyncFd<OwnedFd>, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let (guest, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        (client, guest, sys::watch(accepted.into()).unwrap(), stream.into())
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn both_directions_arrive_whole_and_end_on_their_own() {
        let (mut client, mut guest, accepted, stream) = connections();
        let server = std::thread::spawn(move || {
            let mut got = Vec::new();
            guest.read_to_end(&mut got).unwrap();
            guest.write_all(&pattern(5 << 20)).unwrap();
            got
        });
        let client = std::thread::spawn(move || {
            client.write_all(&pattern(3 << 20)).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            got
        });
        let relayed = tokio::time::timeout(Duration::from_secs(20), relay(&accepted, stream));
        relayed.await.unwrap().unwrap();
        drop(accepted);
        assert!(server.join().unwrap() == pattern(3 << 20));
        assert!(client.join().unwrap() == pattern(5 << 20));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_stops_the_guest() {
        let (client, mut guest, accepted, stream) = connections();
        guest.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let writer = std::thread::spawn(move || {
            let mut written = 0;
            while let Ok(count) = guest.write(&[7; 65536]) {
                written += count;
            }
            written
        });
        let relayed = tokio::time::timeout(Duration::from_millis(800), relay(&accepted, stream));
        assert!(relayed.await.is_err(), "the relay ended");
        let written = writer.join().unwrap();
        assert!(written < 16 << 20, "{written} bytes went somewhere");
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_an_error() {
        let (client, mut guest, accepted, stream) = connections();
        drop(client);
        let writer = std::thread::spawn(move || while guest.write_all(&[7; 65536]).is_ok() {});
        let relayed = tokio::time::timeout(Duration::from_secs(20), relay(&accepted, stream));
        relayed.await.unwrap().unwrap_err();
        writer.join().unwrap();
    }
}
