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
use nacre_protocol::vsock::StreamAddress;
use rustix::net::{SocketFlags, accept_with, getsockname, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::guest::{CallError, Guest};
use crate::{log, sys};
pub use namespace::{Listening, listen_in};

/// Most connections of a pod at once; more wait to be accepted. The VM's vsock device has 256 connections,
/// which the pod's processes need, too.
pub const MAX_CONNECTIONS: usize = 128;

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
    /// Accepts connections, at most [`MAX_CONNECTIONS`] at once, and gives each to `accepted`. Never returns
    /// unless the sockets fail.
    ///
    /// # Errors
    /// If waiting for connections fails.
    pub async fn accept<F: Future<Output = ()>>(
        self,
        accepted: impl Fn(Connection) -> F,
    ) -> std::io::Result<()> {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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

/// The next connection, which is reset when it is dropped.
async fn accept_next(socket: &AsyncFd<OwnedFd>) -> std::io::Result<OwnedFd> {
    loop {
        let mut ready = socket.readable().await?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(socket, flags) {
            Ok(client) => {
                sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
                return Ok(client);
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            // The client has gone already.
            Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
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
