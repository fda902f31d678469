//! Forwards the engine's events to containerd: in order, by `Events/Forward` (ttrpc) at TTRPC_ADDRESS. A bounded queue and
//! one task; an event that can't be delivered waits, with those behind it, until containerd is back: until its socket
//! appears (`socket_watch`) or it calls the shim ([`Wake`]). An event that containerd refuses is logged and dropped.

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

/// Events that may wait for containerd.
const QUEUE: usize = 1024;
/// How long containerd may take to answer before it counts as gone.
const DEADLINE: Duration = Duration::from_secs(10);

/// Retries the delivery of waiting events at once: a call from containerd shows that it is back.
#[derive(Debug, Clone)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Retries now.
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
    /// A publisher for `namespace` to containerd's ttrpc socket at `address` (TTRPC_ADDRESS), and the task that delivers.
    /// The task ends when the publisher is dropped and all events are delivered.
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

    /// For whoever notices that containerd is back.
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
                "no TTRPC_ADDRESS: event {} goes nowhere",
                event.topic
            ));
            continue;
        };
        while let Err(error) = forward(&mut client, socket, &event).await {
            log::warn(format_args!("event {} waits: {error}", event.topic));
            // Watch first, then try again, so that a socket that appears in between is not missed.
            let appears = SocketWatch::new(socket);
            if forward(&mut client, socket, &event).await.is_ok() {
                break;
            }
            tokio::select! {
                () = wake.0.notified() => {}
                () = appearance(appears) => {}
            }
        }
    }
}

async fn appearance(watched: Option<SocketWatch>) {
    match watched {
        Some(watched) => watched.wait().await,
        None => std::future::pending().await,
    }
}

/// Sends one event, over a new connection where there is none. An error: it can be tried again.
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
                "containerd refuses event {}: {}",
                event.topic, status.message
            ));
        }
        Err(error) => return Err(error),
    }
    *client = Some(connected);
    Ok(())
}
