//! Delivery to a containerd that starts, stops and starts again.

use super::*;
use async_trait::async_trait;
use containerd_shim_protos::events::task::TaskStart;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use ttrpc::asynchronous::{Server, TtrpcContext};

struct Containerd(mpsc::UnboundedSender<Envelope>);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.send(request.envelope.unwrap_or_default()).unwrap();
        Ok(Empty::new())
    }
}

async fn serve(socket: &Path) -> (Server, mpsc::UnboundedReceiver<Envelope>) {
    let (sender, received) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .bind(&format!("unix://{}", socket.display()))
        .unwrap()
        .register_service(create_events(Arc::new(Containerd(sender))));
    server.start().await.unwrap();
    (server, received)
}

async fn next(received: &mut mpsc::UnboundedReceiver<Envelope>) -> (String, u32) {
    let envelope = tokio::time::timeout(Duration::from_secs(20), received.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(envelope.namespace, "ns");
    let event = envelope.event.unwrap_or_default();
    assert_eq!(event.type_url, "containerd.events.TaskStart");
    (
        envelope.topic,
        TaskStart::parse_from_bytes(&event.value).unwrap().pid,
    )
}

fn start(publisher: &Publisher, pid: u32) {
    publisher.publish(&TaskEvent::Started { id: "a", pid });
}

#[tokio::test]
async fn events_arrive_in_order_and_wait_while_containerd_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("containerd.sock.ttrpc");
    let (publisher, delivered) = Publisher::spawn("ns", Some(socket.display().to_string()));
    start(&publisher, 1);
    start(&publisher, 2);
    // Let the delivering task fail to connect.
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let (mut server, mut received) = serve(&socket).await;
    assert_eq!(next(&mut received).await, ("/tasks/start".into(), 1));
    assert_eq!(next(&mut received).await.1, 2);
    server.shutdown().await.unwrap();
    std::fs::remove_file(&socket).unwrap();
    start(&publisher, 3);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let (_server, mut received) = serve(&socket).await;
    start(&publisher, 4);
    assert_eq!(next(&mut received).await.1, 3);
    assert_eq!(next(&mut received).await.1, 4);
    drop(publisher);
    tokio::time::timeout(Duration::from_secs(5), delivered)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nobody");
    let (publisher, _delivered) = Publisher::spawn("ns", Some(socket.display().to_string()));
    for pid in 0..5000 {
        start(&publisher, pid);
    }
    assert_eq!(publisher.queue.capacity(), 0);
}

#[tokio::test]
async fn oom_events_leave_room_in_the_queue_for_exits() {
    let (publisher, _delivered) = Publisher::spawn("ns", None);
    // The task that delivers does not run between these.
    for _ in 0..QUEUE {
        publisher.publish(&TaskEvent::OutOfMemory { id: "a" });
    }
    assert_eq!(publisher.queue.capacity(), QUEUE / 2 - 1);
    start(&publisher, 1);
    assert_eq!(publisher.queue.capacity(), QUEUE / 2 - 2);
}
