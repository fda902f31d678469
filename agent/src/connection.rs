//! Serves ttrpc on one stream that the agent has opened to the host, and reports the end of that stream,
//! which the ttrpc library's server does not. Called by `main`; never opens or accepts a stream.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::oneshot;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

/// A stream with a server on it. Dropping it closes the stream: the library ends connections with their
/// server.
pub struct Connection {
    _server: Server,
    stream: Arc<AsyncFd<OwnedFd>>,
    ended: oneshot::Receiver<()>,
}

impl Connection {
    /// Writes `bytes`, which are fewer than a new stream's buffer has room for, past the server. For a peer that speaks
    /// no ttrpc: the VMM at a rehearsal.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::io::write(&*self.stream, bytes)?;
        Ok(())
    }

    /// Waits until the peer closes the stream, reading from it fails, or it is reset.
    pub async fn ended(&mut self) {
        tokio::select! {
            // The sender is dropped with the stream, so an error also means that the stream has ended.
            _ = &mut self.ended => {}
            // A vsock stream that is reset has an error (EPOLLERR) and nothing to read.
            _ = self.stream.ready(Interest::ERROR) => {}
        }
    }
}

/// Serves `services`, by their ttrpc names, on `stream`.
pub async fn serve(
    stream: AsyncFd<OwnedFd>,
    services: HashMap<String, Service>,
) -> ttrpc::Result<Connection> {
    let (ended, receiver) = oneshot::channel();
    let inner = Arc::new(stream);
    let stream = Stream {
        inner: Arc::clone(&inner),
        ended: Some(ended),
    };
    let listener = Listener::new(futures::stream::iter([Ok(stream)]));
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await?;
    Ok(Connection {
        _server: server,
        stream: inner,
        ended: receiver,
    })
}

struct Stream {
    inner: Arc<AsyncFd<OwnedFd>>,
    ended: Option<oneshot::Sender<()>>,
}

impl Stream {
    fn report_end(&mut self) {
        if let Some(ended) = self.ended.take() {
            // Sending fails only if the Connection was dropped: the agent is stopping.
            let _ = ended.send(());
        }
    }

    fn poll_receive(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.inner.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            if let Ok(result) = guard.try_io(|fd| rustix::io::read(fd, &mut *space).map_err(io::Error::from))
            {
                let length = result?;
                buffer.advance(length);
                return Poll::Ready(Ok(length));
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = ready!(this.poll_receive(context, buffer));
        if !matches!(result, Ok(1..)) {
            this.report_end();
        }
        Poll::Ready(result.map(drop))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.inner.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| rustix::io::write(fd, bytes).map_err(io::Error::from)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(
            rustix::net::shutdown(self.inner.get_ref(), rustix::net::Shutdown::Write)
                .map_err(io::Error::from),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::async_fd;

    async fn ends_with<T>(stream: OwnedFd, peer: T) {
        let stream = async_fd::register(stream).unwrap();
        let mut connection = serve(stream, HashMap::new()).await.unwrap();
        let soon = Duration::from_millis(50);
        tokio::time::timeout(soon, connection.ended()).await.unwrap_err();
        drop(peer);
        let late = Duration::from_secs(60);
        tokio::time::timeout(late, connection.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_stream_has_ended() {
        let (stream, peer) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        ends_with(stream.into(), peer).await;
    }

    /// As a vsock stream has it that is reset: the write end of a pipe, once its read end is closed.
    #[tokio::test]
    async fn a_stream_that_has_only_an_error_has_ended() {
        let (peer, stream) = std::io::pipe().unwrap();
        ends_with(stream.into(), peer).await;
    }
}
