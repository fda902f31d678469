//! Calls that the agent answers too late, on a paused clock.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use nacre_protocol::agent::{Agent, create_agent};
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

/// Answers Pause after 90 s, and reports each Resume.
struct LateAgent(mpsc::UnboundedSender<String>);

#[async_trait]
impl Agent for LateAgent {
    async fn pause_container(&self, _: &TtrpcContext, _: ContainerRef) -> ttrpc::Result<Empty> {
        let late = Duration::from_secs(90);
        let _elapsed = tokio::time::timeout(late, std::future::pending::<()>()).await;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.0.send(request.container_id).unwrap();
        Ok(Empty::new())
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_paused_too_late_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (resumed, mut resumes) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).unwrap())
        .register_service(create_agent(Arc::new(LateAgent(resumed))));
    server.start().await.unwrap();
    let guest = Guest::new(UnixStream::connect(&socket).unwrap().into(), patience::Vmm::of(0)).unwrap();
    assert_eq!(guest.pause("a").await, Err(CallError::TimedOut));
    assert_eq!(resumes.recv().await.as_deref(), Some("a"));
}
