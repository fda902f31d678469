//! Calls that the agent answers too late, on a paused clock: what they made is undone.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use nacre_protocol::agent::{
    Agent, CreateContainerResponse, StartExecResponse, WaitProcessResponse, create_agent,
};
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

/// Answers what makes something after 90 s, and reports each call that undoes it.
struct LateAgent(mpsc::UnboundedSender<String>);

impl LateAgent {
    fn report(&self, call: String) -> ttrpc::Result<Empty> {
        self.0.send(call).unwrap();
        Ok(Empty::new())
    }
}

async fn late<T: Default>() -> ttrpc::Result<T> {
    let _elapsed = tokio::time::timeout(Duration::from_secs(90), std::future::pending::<()>()).await;
    Ok(T::default())
}

#[async_trait]
impl Agent for LateAgent {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        _: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        late().await
    }

    async fn start_exec(&self, _: &TtrpcContext, _: StartExecRequest) -> ttrpc::Result<StartExecResponse> {
        late().await
    }

    async fn pause_container(&self, _: &TtrpcContext, _: ContainerRef) -> ttrpc::Result<Empty> {
        late().await
    }

    async fn kill_process(&self, _: &TtrpcContext, request: KillProcessRequest) -> ttrpc::Result<Empty> {
        let KillProcessRequest { signal, all, .. } = request;
        let ProcessRef {
            container_id,
            exec_id,
            ..
        } = request.process.unwrap();
        self.report(format!("kill {container_id:?} {exec_id:?} {signal} all={all}"))
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        process: ProcessRef,
    ) -> ttrpc::Result<WaitProcessResponse> {
        self.report(format!("wait {:?} {:?}", process.container_id, process.exec_id))?;
        Ok(WaitProcessResponse::new())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.report(format!("delete {:?}", request.container_id))
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.report(format!("resume {:?}", request.container_id))
    }
}

/// Requires that `call` of a guest whose agent answers late times out, and that the agent then gets `undone`.
async fn assert_undone<T>(call: impl AsyncFnOnce(&Guest) -> Result<T, CallError>, undone: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (reports, mut reported) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).unwrap())
        .register_service(create_agent(Arc::new(LateAgent(reports))));
    server.start().await.unwrap();
    let guest = Guest::new(UnixStream::connect(&socket).unwrap().into(), Scheduled::default()).unwrap();
    assert_eq!(call(&guest).await.err(), Some(CallError::TimedOut));
    for want in undone {
        let received = tokio::time::timeout(Duration::from_secs(60), reported.recv()).await;
        assert_eq!(received.ok().flatten().as_deref(), Some(*want));
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_created_too_late_is_removed() {
    let request = CreateContainerRequest {
        container_id: "a".into(),
        ..Default::default()
    };
    let undone = ["kill \"a\" \"\" 9 all=true", "wait \"a\" \"\"", "delete \"a\""];
    assert_undone(async |guest| guest.create(request).await, &undone).await;
}

#[tokio::test(start_paused = true)]
async fn an_exec_that_is_started_too_late_is_killed() {
    let exec = ProcessId {
        container: "a".into(),
        exec: "e".into(),
    };
    let start = async |guest: &Guest| guest.start_exec(&exec, Vec::new(), Stdio::new()).await;
    assert_undone(start, &["kill \"a\" \"e\" 9 all=false"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_paused_too_late_is_resumed() {
    assert_undone(async |guest| guest.pause("a").await, &["resume \"a\""]).await;
}
