//! containerd's Task service: its messages stop here. The same service answers under the names of task.v2 (containerd
//! 1.6, 1.7) and task.v3 (2.x), whose messages are the same. Decides nothing: each call goes to the sandbox's owner.

mod messages;
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

impl TaskService {
    /// Answers that `call` is not done yet.
    fn not_yet<T>(call: &'static str) -> ttrpc::Result<T> {
        Err(Error::NotImplemented(call).into())
    }
}

/// Processes beside init come with Exec, which is not there yet.
fn init_only(id: &str, exec: &str) -> Result<(), Error> {
    if exec.is_empty() {
        return Ok(());
    }
    Err(Error::NoProcess {
        id: id.to_owned(),
        exec: exec.to_owned(),
    })
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

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        init_only(&request.id, &request.exec_id)?;
        let pid = self.sandbox.call(|reply| Call::Start(request.id, reply)).await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        init_only(&request.id, &request.exec_id)?;
        let id = request.id.clone();
        let view = self.sandbox.call(|reply| Call::State(request.id, reply)).await?;
        Ok(messages::state(id, view))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        init_only(&request.id, &request.exec_id)?;
        let exit = self.sandbox.call(|reply| Call::Wait(request.id, reply)).await?;
        let exited_at = Some(messages::timestamp(exit.at_ns)).into();
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        init_only(&request.id, &request.exec_id)?;
        let KillRequest { id, signal, all, .. } = request;
        self.sandbox
            .call(|reply| Call::Kill {
                id,
                signal,
                all,
                reply,
            })
            .await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        init_only(&request.id, &request.exec_id)?;
        let deleted = self.sandbox.call(|reply| Call::Delete(request.id, reply)).await?;
        Ok(messages::deleted(deleted.pid, deleted.exit))
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        init_only(&request.id, &request.exec_id)?;
        if request.stdin {
            self.sandbox
                .call(|reply| Call::CloseStdin(request.id, reply))
                .await?;
        }
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.sandbox.call(|reply| Call::Pids(request.id, reply)).await?;
        Ok(messages::pids(pids))
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let view = self.sandbox.call(|reply| Call::State(request.id, reply)).await?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: view.pid,
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

    async fn exec(&self, _: &TtrpcContext, _: ExecProcessRequest) -> ttrpc::Result<Empty> {
        Self::not_yet("Exec")
    }

    async fn pause(&self, _: &TtrpcContext, _: PauseRequest) -> ttrpc::Result<Empty> {
        Self::not_yet("Pause")
    }

    async fn resume(&self, _: &TtrpcContext, _: ResumeRequest) -> ttrpc::Result<Empty> {
        Self::not_yet("Resume")
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Self::not_yet("Checkpoint")
    }

    async fn resize_pty(&self, _: &TtrpcContext, _: ResizePtyRequest) -> ttrpc::Result<Empty> {
        Self::not_yet("ResizePty")
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        Self::not_yet("Update")
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Self::not_yet("Stats")
    }
}
