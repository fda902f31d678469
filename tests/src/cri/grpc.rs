//! gRPC over a Unix socket, as much as the CRI client needs: one request, one answer or a stream of them. Called
//! by `node`. It never repeats a call, and connects anew if the server has restarted; each call has a deadline.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// The largest message that is accepted, as gRPC's own default.
const LARGEST: usize = 16 << 20;

/// Bytes of answers that the server may send before they are read. containerd 2.1 runs no pod while a client that
/// asked for events takes none, and it begins with those of the last minutes.
const WINDOW: u32 = 16 << 20;

/// How a call failed on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// A code of gRPC: 2 unknown, 5 not found, …
    pub code: u32,
    /// Its text.
    pub message: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl std::error::Error for Status {}

/// A connection to a server.
pub struct Connection {
    runtime: Runtime,
    path: PathBuf,
    requests: Mutex<SendRequest<Bytes>>,
}

/// The answers of a call, one after the other.
pub struct Answers<'c> {
    connection: &'c Connection,
    /// Where they come from; the server sends its headers with the first of them.
    response: Response,
    /// What has arrived and is not yet a whole message.
    pending: BytesMut,
}

enum Response {
    Headers(ResponseFuture),
    Body(RecvStream),
}

impl Response {
    /// The body, once the headers have come; a refusal by the server is an error.
    async fn body(&mut self) -> Result<&mut RecvStream> {
        if let Self::Headers(headers) = self {
            let response = headers.await?;
            if let Some(status) = status(response.headers())? {
                return Err(status.into());
            }
            *self = Self::Body(response.into_body());
        }
        match self {
            Self::Body(body) => Ok(body),
            Self::Headers(_) => bail!("the answer has no body"),
        }
    }
}

impl Connection {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// If nothing listens there or it does not speak HTTP/2.
    pub fn open(path: &Path) -> Result<Self> {
        // Its thread answers the server's pings and settings while no call waits: the server closes a
        // connection whose client is silent for two minutes.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let requests = runtime.block_on(connect(path))?;
        Ok(Self {
            runtime,
            path: path.to_owned(),
            requests: Mutex::new(requests),
        })
    }

    /// What sends the next request: that of the open connection, or of a new one if the server closed it.
    async fn ready(&self) -> Result<SendRequest<Bytes>> {
        let current = self.kept().clone();
        if let Ok(ready) = current.ready().await {
            return Ok(ready);
        }
        let new = connect(&self.path).await?;
        *self.kept() = new.clone();
        Ok(new.ready().await?)
    }

    fn kept(&self) -> MutexGuard<'_, SendRequest<Bytes>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `message` and waits for the answer.
    ///
    /// # Errors
    /// If there is none within `within`, or the connection fails; a refusal by the server is the inner error.
    pub fn call(&self, path: &str, message: &[u8], within: Duration) -> Result<Result<Bytes, Status>> {
        let answer = async {
            let mut response = self.request(path, message).await?.await?;
            if let Some(status) = status(response.headers())? {
                return Ok(Err(status));
            }
            let body = response.body_mut();
            let mut pending = BytesMut::new();
            while read_more(body, &mut pending).await? {}
            let trailers = body.trailers().await?.unwrap_or_default();
            match status(&trailers)? {
                Some(status) => Ok(Err(status)),
                None => Ok(Ok(split(&mut pending)?.context("the answer is cut off")?)),
            }
        };
        self.within(within, answer)
    }

    /// Sends `message` and returns what reads the answers. Does not wait for the first.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stream(&self, path: &str, message: &[u8], within: Duration) -> Result<Answers<'_>> {
        Ok(Answers {
            connection: self,
            response: Response::Headers(self.within(within, self.request(path, message))?),
            pending: BytesMut::new(),
        })
    }

    async fn request(&self, path: &str, message: &[u8]) -> Result<ResponseFuture> {
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut requests = self.ready().await?;
        let (response, mut body) = requests.send_request(request, false)?;
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len())?);
        frame.put_slice(message);
        body.send_data(frame.freeze(), true)?;
        Ok(response)
    }

    fn within<A>(&self, within: Duration, answer: impl Future<Output = Result<A>>) -> Result<A> {
        let answer = async { tokio::time::timeout(within, answer).await };
        let answer = self.runtime.block_on(answer);
        answer.with_context(|| format!("no answer within {} s", within.as_secs()))?
    }
}

impl Answers<'_> {
    /// The next answer; None at their end.
    ///
    /// # Errors
    /// If none arrives within `within`, the server refuses the call, or the connection fails.
    pub fn next(&mut self, within: Duration) -> Result<Option<Bytes>> {
        let (response, pending) = (&mut self.response, &mut self.pending);
        self.connection.within(within, async {
            let body = response.body().await?;
            loop {
                if let Some(message) = split(pending)? {
                    return Ok(Some(message));
                }
                if !read_more(body, pending).await? {
                    return Ok(None);
                }
            }
        })
    }
}

async fn connect(path: &Path) -> Result<SendRequest<Bytes>> {
    let connecting = async {
        let stream = UnixStream::connect(path).await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await?;
        // An error of the connection is the next call's error, too.
        tokio::spawn(async move { drop(connection.await) });
        anyhow::Ok(requests)
    };
    connecting
        .await
        .with_context(|| format!("connecting to {}", path.display()))
}

/// Appends the next piece of the body to `pending`; false at its end.
async fn read_more(body: &mut RecvStream, pending: &mut BytesMut) -> Result<bool> {
    let Some(piece) = body.data().await else {
        return Ok(false);
    };
    let piece = piece?;
    body.flow_control().release_capacity(piece.len())?;
    ensure!(
        pending.len() + piece.len() <= LARGEST,
        "an answer of more than {LARGEST} bytes"
    );
    pending.extend_from_slice(&piece);
    Ok(true)
}

/// Takes a whole message off `pending`.
fn split(pending: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(&[compressed, a, b, c, d]) = pending.first_chunk() else {
        return Ok(None);
    };
    ensure!(compressed == 0, "a compressed answer, which was not asked for");
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
    if pending.len() - 5 < length {
        return Ok(None);
    }
    pending.advance(5);
    Ok(Some(pending.split_to(length).freeze()))
}

/// The status in headers or trailers; None if it says success or nothing.
fn status(headers: &HeaderMap) -> Result<Option<Status>> {
    let Some(code) = headers.get("grpc-status") else {
        return Ok(None);
    };
    let code: u32 = code.to_str()?.parse().context("grpc-status")?;
    if code == 0 {
        return Ok(None);
    }
    let message = match headers.get("grpc-message") {
        Some(message) => percent_decode_str(message.to_str()?)
            .decode_utf8_lossy()
            .into_owned(),
        None => String::new(),
    };
    Ok(Some(Status { code, message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_messages_are_split_off() {
        let mut pending = BytesMut::from(&b"\0\0\0\0\x02ab\0\0\0\0\0\0\0\0\0\x03x"[..]);
        assert_eq!(split(&mut pending).unwrap().unwrap(), "ab");
        assert_eq!(split(&mut pending).unwrap().unwrap(), "");
        assert_eq!(split(&mut pending).unwrap(), None);
        pending.extend_from_slice(b"yz");
        assert_eq!(split(&mut pending).unwrap().unwrap(), "xyz");
        assert!(split(&mut BytesMut::from(&b"\x01\0\0\0\0"[..])).is_err());
    }

    #[test]
    fn a_refusal_has_its_code_and_text() {
        let mut headers = HeaderMap::new();
        assert_eq!(status(&headers).unwrap(), None);
        headers.insert("grpc-status", "0".parse().unwrap());
        assert_eq!(status(&headers).unwrap(), None);
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "no%20such%0Apod".parse().unwrap());
        let refused = status(&headers).unwrap().unwrap();
        assert_eq!(refused.to_string(), "no such\npod (code 5)");
    }
}
