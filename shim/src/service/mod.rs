//! containerd's Task service: its messages stop here. The same service answers under the names of task.v2 (containerd
//! 1.6, 1.7) and task.v3 (2.x), whose messages are the same. Decides nothing: each call goes to the sandbox's owner.

mod messages;
mod metrics;
pub mod publisher;
pub mod status;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Task, create_task};
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::error::Error;
use crate::sandbox::{Call, Handle};

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// The service's tables for a server.
pub fn services(sandbox: &Handle) -> HashMap<String, Service> {
    let table = || {
        create_task(Arc::new(TaskService {
            sandbox: sandbox.clone(),
        }))
    };
    let mut services = table();
    services.extend(table().into_iter().map(|(name, methods)| {
        if name == V3 {
            (V2.to_owned(), methods)
        } else {
            (name, methods)
        }
    }));
    services
}

struct TaskService {
    sandbox: Handle,
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let request = messages::request(request)?;
        let pid = self.sandbox.call(|reply| Call::Create(request, reply)).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let request = messages::exec_request(request);
        self.sandbox.call(|reply| Call::Exec(request, reply)).await?;
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let name = messages::name(request.id, request.exec_id);
        let pid = self.sandbox.call(|reply| Call::Start(name, reply)).await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let name = messages::name(request.id, request.exec_id);
        let id = if name.is_init() {
            &name.container
        } else {
            &name.exec
        };
        let id = id.clone();
        let view = self.sandbox.call(|reply| Call::State(name, reply)).await?;
        Ok(messages::state(id, view))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let name = messages::name(request.id, request.exec_id);
        let exit = self.sandbox.call(|reply| Call::Wait(name, reply)).await?;
        let exited_at = Some(messages::timestamp(exit.at_ns)).into();
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (signal, all) = (request.signal, request.all);
        let name = messages::name(request.id, request.exec_id);
        self.sandbox
            .call(|reply| Call::Kill {
                name,
                signal,
                all,
                reply,
            })
            .await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let name = messages::name(request.id, request.exec_id);
        let deleted = self.sandbox.call(|reply| Call::Delete(name, reply)).await?;
        Ok(messages::deleted(&deleted))
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        if request.stdin {
            let name = messages::name(request.id, request.exec_id);
            self.sandbox.call(|reply| Call::CloseStdin(name, reply)).await?;
        }
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let size = messages::size(&request)?;
        let name = messages::name(request.id, request.exec_id);
        self.sandbox.call(|reply| Call::Resize(name, size, reply)).await?;
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.sandbox.call(|reply| Call::Pids(request.id, reply)).await?;
        Ok(messages::pids(pids))
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.sandbox.call(|reply| Call::Pause(request.id, reply)).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.sandbox.call(|reply| Call::Resume(request.id, reply)).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, mut request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let resources = messages::resources(&mut request);
        self.sandbox
            .call(|reply| Call::Update(request.id, resources, reply))
            .await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let files = self.sandbox.call(|reply| Call::Stats(request.id, reply)).await?;
        Ok(StatsResponse {
            stats: Some(publisher::any(&metrics::read(&files))).into(),
            ..Default::default()
        })
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(Error::NotImplemented("Checkpoint: Nacre can't save the state of a container yet").into())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let name = messages::name(request.id, String::new());
        // As containerd's own shims, which are asked before there is a task.
        let task_pid = match self.sandbox.call(|reply| Call::State(name, reply)).await {
            Ok(view) => view.pid,
            Err(Error::NoTask(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.sandbox
            .call(|reply| Call::Shutdown {
                now: request.now,
                reply,
            })
            .await?;
        Ok(Empty::new())
    }
}
