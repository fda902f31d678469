//! Port-forward: the sandbox's part. It starts to listen in the pod's network namespace when the agent is
//! ready, and expects a stream of the guest for each connection. See [`crate::forward`].

use std::os::fd::OwnedFd;

use nacre_protocol::vsock::StreamAddress;
use tokio::sync::oneshot;

use super::Sandbox;
use super::progress::until_ended;
use super::queue::Event;
use crate::forward::{self, Connection};
use crate::guest::Guest;
use crate::network::Namespace;
use crate::{log, streams};

impl Sandbox {
    /// Forwards connections to the localhost of the pod's network namespace, if it has one, until the VM
    /// ends.
    pub(super) fn start_forwarding(&self) {
        // Links that a pod without a namespace of its own gets come later, and have no port-forward.
        let Some(record) = self.pod.network.clone() else {
            return;
        };
        let mut progress = self.progress.subscribe();
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let forwarded = async {
                let gone = || "its network namespace is gone".to_owned();
                let namespace = Namespace::recorded(&record)?.ok_or_else(gone)?;
                let listening = forward::listen_in(&namespace).await?;
                let accepted = |connection| queue.send(Event::ForwardAccepted(connection));
                let result = listening.accept(accepted).await;
                result.map_err(|error| format!("accepting connections: {error}"))
            };
            tokio::select! {
                () = until_ended(&mut progress) => {}
                Err(reason) = forwarded => log::warn(format_args!(
                    "port-forward to this pod does not work: {reason}"
                )),
            }
        });
    }

    /// A client has connected to the localhost of the pod's network namespace.
    pub(super) fn forward_accepted(&mut self, connection: Connection) {
        let Some(guest) = self.progress.borrow().guest() else {
            return;
        };
        match self.expect_stream() {
            Ok((address, opened)) => self.forward(connection, guest, address, opened),
            Err(error) => log::warn(format_args!("forwarding a connection: {error}")),
        }
    }

    fn expect_stream(&mut self) -> std::io::Result<(StreamAddress, oneshot::Receiver<OwnedFd>)> {
        let address = streams::random_address()?;
        let (sender, opened) = oneshot::channel();
        self.expected_streams.add(vec![(address, sender)])?;
        Ok((address, opened))
    }

    fn forward(
        &self,
        connection: Connection,
        guest: Guest,
        address: StreamAddress,
        opened: oneshot::Receiver<OwnedFd>,
    ) {
        let mut progress = self.progress.subscribe();
        self.queue.send_result(async move {
            tokio::select! {
                () = until_ended(&mut progress) => {}
                () = connection.serve(&guest, address, opened) => {}
            }
            Event::ForwardEnded(address)
        });
    }

    /// A forwarded connection has ended: the guest may not open its stream any more.
    pub(super) fn forward_ended(&mut self, address: &StreamAddress) {
        self.expected_streams.remove(address);
    }
}
