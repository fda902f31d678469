//! Connections to the localhost of the pod's network namespace on the host, as `kubectl port-forward` makes
//! them, lead to the guest's localhost, where the pod's servers are:
//!
//! ```text
//! client ─TCP─▶ listening socket ──▶ relay ─vsock stream─▶ agent ─TCP─▶ server
//!  (host)       (BPF, any port)     (shim)                (guest)
//! ```
//! The sandbox starts it when its agent is ready, if the pod has a network namespace. It ends with the VM, or
//! with the shim, and nothing of it is left in the namespace. Without BPF there is no forwarding; the pod
//! runs all the same.

mod namespace;
mod program;
mod relay;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::Family;
use nacre_protocol::vsock::{MAX_FORWARDED, StreamAddress};
use rustix::net::{SocketFlags, accept_with, getsockname, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::guest::{CallError, Guest};
use crate::{log, sys};
pub use namespace::{Listening, listen_in};

/// What a client has connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The family of localhost.
    pub family: Family,
    /// The port.
    pub port: u16,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    target: Target,
    _permit: OwnedSemaphorePermit,
}

impl Listening {
    /// Accepts connections, at most [`MAX_FORWARDED`] at once, and gives each to `accepted`. Never returns
    /// unless the sockets fail.
    ///
    /// # Errors
    /// If waiting for connections fails.
    pub async fn accept<F: Future<Output = ()>>(
        self,
        accepted: impl Fn(Connection) -> F,
    ) -> std::io::Result<()> {
        let permits = Arc::new(Semaphore::new(MAX_FORWARDED));
        let _attached = self.link;
        let ipv4 = accept_all(self.ipv4, Family::IPV4, &permits, &accepted);
        match self.ipv6 {
            Some(ipv6) => {
                let ipv6 = accept_all(ipv6, Family::IPV6, &permits, &accepted);
                tokio::try_join!(ipv4, ipv6).map(drop)
            }
            None => ipv4.await,
        }
    }
}

async fn accept_all<F: Future<Output = ()>>(
    socket: OwnedFd,
    family: Family,
    permits: &Arc<Semaphore>,
    accepted: &impl Fn(Connection) -> F,
) -> std::io::Result<()> {
    let socket = sys::watch(socket)?;
    loop {
        let permit = Arc::clone(permits).acquire_owned().await;
        let permit = permit.map_err(std::io::Error::other)?;
        let client = accept_next(&socket).await?;
        // The connection keeps the destination that the client asked for, whatever the listening socket's is.
        let Ok(port) = getsockname(&client).and_then(SocketAddr::try_from) else {
            continue;
        };
        let target = Target {
            family,
            port: port.port(),
        };
        accepted(Connection {
            socket: client,
            target,
            _permit: permit,
        })
        .await;
    }
}

/// The next connection, which is reset when it is dropped. One that can't be accepted, since descriptors or
/// memory are short, waits until another one comes.
async fn accept_next(socket: &AsyncFd<OwnedFd>) -> std::io::Result<OwnedFd> {
    use rustix::io::Errno;
    loop {
        let mut ready = socket.readable().await?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(socket, flags) {
            Ok(client) => {
                sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
                return Ok(client);
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            // The client has gone already.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                log::warn(format_args!("accepting a connection to forward: {error}"));
                ready.clear_ready();
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Connection {
    /// What the client has connected to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Has `guest` connect to the target, and copies until both directions have ended. The guest's stream, at
    /// `address`, comes through `opened`. A connection that fails is reset.
    pub async fn serve(self, guest: &Guest, address: StreamAddress, opened: oneshot::Receiver<OwnedFd>) {
        let Target { family, port } = self.target();
        if let Err(reason) = self.copy(guest, address, opened).await {
            log::info(format_args!("forwarding to port {port} of {family:?}: {reason}"));
        }
    }

    async fn copy(
        self,
        guest: &Guest,
        address: StreamAddress,
        opened: oneshot::Receiver<OwnedFd>,
    ) -> Result<(), String> {
        let client = sys::watch(self.socket).map_err(|error| error.to_string())?;
        let relayed = async {
            let stream = opened.await.map_err(|_| "the pod has ended".to_owned())?;
            let relayed = relay::relay(&client, stream).await;
            relayed.map_err(|error| error.to_string())
        };
        let forwarded = guest.forward(self.target.family, self.target.port, address);
        tokio::pin!(relayed, forwarded);
        tokio::select! {
            ended = &mut relayed => ended?,
            answer = &mut forwarded => match answer {
                // The guest has sent and received everything.
                Ok(()) => relayed.await?,
                Err(CallError::Answer(_, reason) | CallError::Lost(reason)) => return Err(reason),
                Err(CallError::TimedOut) => return Err("the agent does not answer".into()),
            },
        }
        sockopt::set_socket_linger(&client, None).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// Runs `test` in a process of its own: its limit of descriptors is the process's.
    fn in_process(test: impl FnOnce()) {
        let child = sys::fork_into(|| {
            i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).is_err())
        });
        let status = nix::sys::wait::waitpid(child.unwrap(), None).unwrap();
        assert!(
            matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
            "{status:?}"
        );
    }

    async fn without_descriptors() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let socket = sys::watch(listener.into()).unwrap();
        let _clients = (
            TcpStream::connect(address).unwrap(),
            TcpStream::connect(address).unwrap(),
        );
        let before = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            ..before
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let moment = Duration::from_millis(50);
        let accepted = tokio::time::timeout(moment, accept_next(&socket)).await;
        assert!(accepted.is_err(), "{accepted:?}");
        setrlimit(Resource::Nofile, before).unwrap();
        // The third connection wakes the listener, which then takes all that wait.
        let _third = TcpStream::connect(address).unwrap();
        for _ in 0..3 {
            let accepted = tokio::time::timeout(Duration::from_secs(20), accept_next(&socket));
            accepted.await.unwrap().unwrap();
        }
    }

    #[test]
    fn a_shortage_of_descriptors_does_not_end_forwarding() {
        in_process(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(without_descriptors());
        });
    }
}
