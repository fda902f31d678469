//! containerd's Task service. containerd's messages are converted here and go no further; every decision is
//! the sandbox's. The service is registered as task.v2 (containerd 1.6 and 1.7) and as task.v3 (2.x), which
//! have the same messages.

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

use nacre_pod::{Call, Error, Handle, Reply};

use crate::events::Wake;
use crate::status::status_of;
use crate::{messages, metrics};

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// The method tables for a ttrpc server, by service name.
pub fn services(sandbox: &Handle, wake: &Wake) -> HashMap<String, Service> {
    let table = || {
        create_task(Arc::new(TaskService {
            sandbox: sandbox.clone(),
            wake: wake.clone(),
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
    wake: Wake,
}

impl TaskService {
    /// Forwards a call to the sandbox and waits for its answer.
    async fn call<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> ttrpc::Result<T> {
        // A call shows that containerd is running, so waiting events can be delivered.
        self.wake.wake();
        self.sandbox.call(call).await.map_err(status_of)
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let request = messages::create_request(request).map_err(status_of)?;
        let pid = self.call(|reply| Call::Create(request, reply)).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let request = messages::exec_request(request);
        self.call(|reply| Call::Exec(request, reply)).await?;
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let name = messages::process_id(request.id, request.exec_id);
        let pid = self.call(|reply| Call::Start(name, reply)).await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let name = messages::process_id(request.id, request.exec_id);
        let id = if name.is_init() {
            &name.container
        } else {
            &name.exec
        };
        let id = id.clone();
        let view = self.call(|reply| Call::State(name, reply)).await?;
        Ok(messages::state(id, view))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let name = messages::process_id(request.id, request.exec_id);
        let exit = self.call(|reply| Call::Wait(name, reply)).await?;
        let exited_at = Some(messages::timestamp(exit.at_ns)).into();
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (signal, all) = (request.signal, request.all);
        let name = messages::process_id(request.id, request.exec_id);
        self.call(|reply| Call::Kill {
            name,
            signal,
            all,
            reply,
        })
        .await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let name = messages::process_id(request.id, request.exec_id);
        let deleted = self.call(|reply| Call::Delete(name, reply)).await?;
        Ok(messages::deleted(&deleted))
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        if request.stdin {
            let name = messages::process_id(request.id, request.exec_id);
            self.call(|reply| Call::CloseStdin(name, reply)).await?;
        }
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let size = messages::terminal_size(&request).map_err(status_of)?;
        let name = messages::process_id(request.id, request.exec_id);
        self.call(|reply| Call::Resize(name, size, reply)).await?;
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.call(|reply| Call::Pids(request.id, reply)).await?;
        Ok(messages::pids(pids))
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.call(|reply| Call::Pause(request.id, reply)).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.call(|reply| Call::Resume(request.id, reply)).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, mut request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let resources = messages::resources(&mut request);
        self.call(|reply| Call::Update(request.id, resources, reply))
            .await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let files = self.call(|reply| Call::Stats(request.id, reply)).await?;
        Ok(StatsResponse {
            stats: Some(messages::any(messages::METRICS, &metrics::read(&files))).into(),
            ..Default::default()
        })
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(status_of(Error::NotImplemented(
            "Checkpoint: Nacre can't save the state of a container yet",
        )))
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let name = messages::process_id(request.id, String::new());
        // Connect may come before Create: containerd's own shims then answer with pid 0, and so does this
        // one.
        self.wake.wake();
        let task_pid = match self.sandbox.call(|reply| Call::State(name, reply)).await {
            Ok(view) => view.pid,
            Err(Error::NoTask(_)) => 0,
            Err(error) => return Err(status_of(error)),
        };
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.call(|reply| Call::Shutdown {
            now: request.now,
            reply,
        })
        .await?;
        Ok(Empty::new())
    }
}
