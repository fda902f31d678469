//! The connections to the pod's socket. The daemon keeps each open until its client has closed it: containerd's client
//! takes an answer and the end of its connection, if it finds both at once, in any order, and a call whose answer it
//! loses so fails with "ttrpc: closed". The ttrpc library does not tell when a client has closed a connection.

use std::io;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;

/// The connections that clients have not closed. Each holds a receiver.
pub struct Connections(watch::Sender<()>);

impl Connections {
    /// Makes a ttrpc library's listener of `socket`, whose connections are counted.
    ///
    /// # Errors
    ///
    /// If the socket can't be registered with the tokio runtime.
    pub fn listen(socket: UnixListener) -> io::Result<(Self, Listener)> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(socket)?;
        let open = watch::Sender::new(());
        let accepting = (socket, open.clone());
        let streams = futures::stream::unfold(accepting, async |(socket, open)| {
            let accepted = socket.accept().await;
            let connection = accepted.map(|(stream, _)| Connection {
                stream,
                _open: open.subscribe(),
            });
            Some((connection, (socket, open)))
        });
        Ok((Self(open), Listener::new(streams)))
    }

    /// Waits until clients have closed all connections that were accepted.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

struct Connection {
    stream: UnixStream,
    _open: watch::Receiver<()>,
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use futures::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn waits_for_the_last_client() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (connections, mut listener) = Connections::listen(UnixListener::bind(&path).unwrap()).unwrap();
        connections.closed().await;
        let clients = [0; 2].map(|_| UnixStream::connect(&path).unwrap());
        let mut served = Vec::new();
        for _ in &clients {
            let mut socket = listener.next().await.unwrap().unwrap();
            served.push(tokio::spawn(async move {
                // The end of the client's stream.
                assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
            }));
        }
        let [first, second] = clients;
        drop(first);
        served.remove(0).await.unwrap();
        let waited = tokio::time::timeout(Duration::ZERO, connections.closed()).await;
        assert!(waited.is_err(), "one connection is open");
        drop(second);
        connections.closed().await;
    }
}
