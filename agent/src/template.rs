//! What the agent of a template does: it waits for the VM to continue from a snapshot, in which no stream to
//! the host exists, and learns whether that is a pod's life or a rehearsal. Called by `main` once the agent has
//! prepared everything; never in a VM that is not to be saved.

use std::os::fd::OwnedFd;

use nacre_protocol::guest::{REHEARSE, TEMPLATE_READY};
use nacre_protocol::vsock::AGENT_PORT;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::dial::Dialer;
use crate::error::Error;

/// What the guest goes on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextLife {
    /// To be a pod's.
    Pod,
    /// To rehearse a pod's start, in the VMM that has saved it.
    Rehearsal,
}

/// Reports to the host that the VM can be saved, and returns once the stream of that report has ended: the
/// VMM that continues from a snapshot resets all streams of the guest. Only the VMM that has made the snapshot can
/// write to this one.
pub async fn wait_for_next_life(dialer: &Dialer) -> Result<NextLife, Error> {
    let stream = dialer.start(AGENT_PORT)?.finish().await?;
    let context = || Error::system::<std::io::Error>("reporting that the VM can be saved");
    // One byte fits into the buffer of a stream that is new.
    rustix::io::write(&stream, &[TEMPLATE_READY]).map_err(|error| context()(error.into()))?;
    wait_for_end(&stream).await.map_err(context())
}

/// Waits until the peer closes `stream` or it is reset.
async fn wait_for_end(stream: &AsyncFd<OwnedFd>) -> std::io::Result<NextLife> {
    let mut life = NextLife::Pod;
    loop {
        // A stream that is reset has an error and nothing to read.
        let mut guard = stream.ready(Interest::READABLE | Interest::ERROR).await?;
        let mut byte = [0];
        match guard.try_io(|fd| rustix::io::read(fd, &mut byte).map_err(std::io::Error::from)) {
            Ok(Ok(0) | Err(_)) => return Ok(life),
            Ok(Ok(_)) if byte == [REHEARSE] => life = NextLife::Rehearsal,
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// The life of an agent that is sent `bytes` before its stream ends.
    async fn life_after(bytes: &'static [u8]) -> NextLife {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(AGENT_PORT.to_string())).unwrap();
        let dialer = Dialer::Unix(directory.path().to_owned());
        let waiting = tokio::spawn(async move { wait_for_next_life(&dialer).await });
        tokio::task::spawn_blocking(move || {
            let (mut host, _) = listener.accept().unwrap();
            let mut byte = [0];
            host.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [TEMPLATE_READY]);
            host.write_all(bytes).unwrap();
        })
        .await
        .unwrap();
        waiting.await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn an_agent_reports_and_waits_until_its_stream_ends() {
        assert_eq!(life_after(b"").await, NextLife::Pod);
    }

    #[tokio::test]
    async fn only_one_byte_begins_a_rehearsal() {
        assert_eq!(life_after(&[REHEARSE]).await, NextLife::Rehearsal);
        assert_eq!(life_after(&[TEMPLATE_READY, 0]).await, NextLife::Pod);
    }
}
