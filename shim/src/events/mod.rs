//! Forwards the engine's events to containerd, in order, by `Events/Forward` (ttrpc) at TTRPC_ADDRESS. The
//! queue is bounded, and one task delivers. If containerd can't be reached, events wait until its socket
//! appears (`socket_watch`) or it calls the shim ([`Wake`]). An event that containerd refuses is logged and
//! dropped.

mod envelope;
mod socket_watch;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use nacre_pod::{EventSink, TaskEvent, log};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use ttrpc::asynchronous::Client;

use envelope::envelope;
use socket_watch::SocketWatch;

/// Most events that wait for containerd.
const QUEUE: usize = 1024;
/// How long containerd may take to answer; after that the connection counts as lost.
const DEADLINE: Duration = Duration::from_secs(10);

/// Makes the publisher retry delivery at once. Used for each call of containerd, which shows that it is
/// running.
#[derive(Debug, Clone)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Retries the delivery of waiting events.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Queues events for containerd.
#[derive(Debug)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
    wake: Wake,
}

impl Publisher {
    /// A publisher for `namespace` to containerd's ttrpc socket at `address` (TTRPC_ADDRESS), and the task
    /// that delivers. The task ends when the publisher is dropped and all events are delivered.
    pub fn spawn(namespace: &str, address: Option<String>) -> (Self, JoinHandle<()>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let wake = Wake(Arc::new(Notify::new()));
        let path = address.map(|address| PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address)));
        let delivered = tokio::spawn(deliver(events, path, wake.clone()));
        let publisher = Self {
            namespace: namespace.to_owned(),
            queue,
            wake,
        };
        (publisher, delivered)
    }

    /// A handle for the Task service, which sees containerd's calls.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }
}

impl EventSink for Publisher {
    fn publish(&self, event: &TaskEvent<'_>) {
        if matches!(event, TaskEvent::OutOfMemory { .. }) && self.queue.capacity() < QUEUE / 2 {
            // A container can cause any number of these; they must not displace its exit.
            return log::warn(format_args!(
                "too many events wait for containerd: {event:?} is dropped"
            ));
        }
        let envelope = envelope(&self.namespace, event);
        if let Err(error) = self.queue.try_send(envelope) {
            let topic = error.clone().into_inner().topic;
            log::error(format_args!("event {topic} is dropped: {error}"));
        }
    }
}

async fn deliver(mut events: mpsc::Receiver<Envelope>, socket: Option<PathBuf>, wake: Wake) {
    let mut client = None;
    while let Some(event) = events.recv().await {
        let Some(socket) = &socket else {
            log::warn(format_args!(
                "event {} is dropped: TTRPC_ADDRESS is not set",
                event.topic
            ));
            continue;
        };
        while let Err(error) = forward(&mut client, socket, &event).await {
            log::warn(format_args!("event {} waits: {error}", event.topic));
            // The watch starts before this second attempt, so that a socket that appears in between is not
            // missed.
            let watch = SocketWatch::new(socket);
            if forward(&mut client, socket, &event).await.is_ok() {
                break;
            }
            tokio::select! {
                () = wake.0.notified() => {}
                () = socket_appears(watch) => {}
            }
        }
    }
}

/// Waits until the socket appears; for ever if it can't be watched.
async fn socket_appears(watch: Option<SocketWatch>) {
    match watch {
        Some(watch) => watch.wait().await,
        None => std::future::pending().await,
    }
}

/// Sends one event over the connection in `client`, or a new one. After an error it can be sent again.
async fn forward(
    client: &mut Option<EventsClient>,
    socket: &Path,
    event: &Envelope,
) -> Result<(), ttrpc::Error> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(Client::connect(&format!("unix://{}", socket.display())).await?),
    };
    let request = ForwardRequest {
        envelope: Some(event.clone()).into(),
        ..Default::default()
    };
    match connected
        .forward(ttrpc::context::with_duration(DEADLINE), &request)
        .await
    {
        Ok(_) => {}
        Err(ttrpc::Error::RpcStatus(status)) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED => {
            log::error(format_args!(
                "containerd refused event {}: {}",
                event.topic, status.message
            ));
        }
        Err(error) => return Err(error),
    }
    *client = Some(connected);
    Ok(())
}
