//! What the agent of a template does: it waits for the VM to continue from a snapshot, in which no stream to
//! the host exists. Called by `main` once the agent has prepared everything; never in a VM that is not to be
//! saved.

use std::os::fd::OwnedFd;

use nacre_protocol::guest::TEMPLATE_READY;
use nacre_protocol::vsock::AGENT_PORT;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::dial::Dialer;
use crate::error::Error;

/// Reports to the host that the VM can be saved, and returns once the stream of that report has ended: the
/// VMM that continues from a snapshot resets all streams of the guest.
pub async fn wait_for_next_life(dialer: &Dialer) -> Result<(), Error> {
    let stream = dialer.start(AGENT_PORT)?.finish().await?;
    let context = || Error::system::<std::io::Error>("reporting that the VM can be saved");
    // One byte fits into the buffer of a stream that is new.
    rustix::io::write(&stream, &[TEMPLATE_READY]).map_err(|error| context()(error.into()))?;
    wait_for_end(&stream).await.map_err(context())
}

/// Waits until the peer closes `stream` or it is reset.
async fn wait_for_end(stream: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    loop {
        // A stream that is reset has an error and nothing to read.
        let mut guard = stream.ready(Interest::READABLE | Interest::ERROR).await?;
        let mut byte = [0];
        let read = guard.try_io(|fd| rustix::io::read(fd, &mut byte).map_err(std::io::Error::from));
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn an_agent_reports_and_waits_until_its_stream_ends() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(AGENT_PORT.to_string())).unwrap();
        let dialer = Dialer::Unix(directory.path().to_owned());
        let waiting = tokio::spawn(async move { wait_for_next_life(&dialer).await });
        tokio::task::spawn_blocking(move || {
            let (mut host, _) = listener.accept().unwrap();
            let mut byte = [0];
            host.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [TEMPLATE_READY]);
            drop(host);
        })
        .await
        .unwrap();
        waiting.await.unwrap().unwrap();
    }
}
