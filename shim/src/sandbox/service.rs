//! The service `containerd.runtime.sandbox.v1.Sandbox`, for one pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use nacre_pod::{Call, Error, Handle, PodCall, PodPhase, PodView, Reply, clock};
use serde_json::json;
use ttrpc::asynchronous::{Service, TtrpcContext};

use super::{pod_config, update};
use crate::events::Wake;
use crate::messages::{METRICS, any, timestamp};
use crate::metrics;
use crate::proto::sandbox::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, UpdateSandboxRequest,
    UpdateSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use crate::proto::sandbox_ttrpc::{Sandbox, create_sandbox};
use crate::proto::types::{Metric, Platform};
use crate::status::status_of;

/// The states that CRI knows; it reads any other text as the second.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The method table for a ttrpc server, of sandbox `id` in containerd's `namespace`.
pub fn services(id: String, namespace: String, sandbox: &Handle, wake: &Wake) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService {
        id,
        namespace,
        sandbox: sandbox.clone(),
        wake: wake.clone(),
    }))
}

struct SandboxService {
    id: String,
    namespace: String,
    sandbox: Handle,
    wake: Wake,
}

impl SandboxService {
    /// Forwards a call about sandbox `id` and waits for its answer.
    async fn call<T>(&self, id: &str, call: impl FnOnce(Reply<T>) -> Call) -> ttrpc::Result<T> {
        // A call shows that containerd is running, so waiting events can be delivered.
        self.wake.wake();
        if id != self.id {
            return Err(status_of(Error::NoPod(id.to_owned())));
        }
        self.sandbox.call(call).await.map_err(status_of)
    }

    async fn pod_call<T>(&self, id: &str, call: impl FnOnce(Reply<T>) -> PodCall) -> ttrpc::Result<T> {
        self.call(id, |reply| Call::Pod(call(reply))).await
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let spec = pod_config::pod_spec(&request, &self.namespace).map_err(status_of)?;
        self.pod_call(&request.sandbox_id, |reply| {
            PodCall::Create(Box::new(spec), reply)
        })
        .await?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let view = self.pod_call(&request.sandbox_id, PodCall::Start).await?;
        Ok(StartSandboxResponse {
            pid: view.pid,
            created_at: Some(timestamp(view.created_ns)).into(),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.pod_call(&request.sandbox_id, PodCall::View).await?;
        // Names of the OCI image specification, which are Go's. A guest has its host's architecture.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            ..Default::default()
        };
        Ok(PlatformResponse {
            platform: Some(platform).into(),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        // The containers are stopped by then, each with its own grace, and the VM itself needs none.
        self.pod_call(&request.sandbox_id, PodCall::Stop).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let exit = self.pod_call(&request.sandbox_id, PodCall::Wait).await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at_ns)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let view = self.pod_call(&request.sandbox_id, PodCall::View).await?;
        Ok(status(request, &view))
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.pod_call(&request.sandbox_id, PodCall::View).await?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.call(&request.sandbox_id, |reply| Call::Shutdown { now: true, reply })
            .await?;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let files = self.pod_call(&request.sandbox_id, PodCall::Stats).await?;
        let metric = Metric {
            timestamp: Some(timestamp(clock::realtime_ns())).into(),
            id: request.sandbox_id,
            data: Some(any(METRICS, &metrics::read(&files))).into(),
            ..Default::default()
        };
        Ok(SandboxMetricsResponse {
            metrics: Some(metric).into(),
            ..Default::default()
        })
    }

    async fn update_sandbox(
        &self,
        _: &TtrpcContext,
        request: UpdateSandboxRequest,
    ) -> ttrpc::Result<UpdateSandboxResponse> {
        let size = update::size(&request).map_err(status_of)?;
        match size {
            // Another sandbox's id is refused nevertheless.
            None => drop(self.pod_call(&request.sandbox_id, PodCall::View).await?),
            Some(size) => {
                let update = |reply| PodCall::Update(size, reply);
                self.pod_call(&request.sandbox_id, update).await?;
            }
        }
        Ok(UpdateSandboxResponse::new())
    }
}

/// Converts a pod's state; `info` has the keys that CRI gives those of a pause container.
fn status(request: SandboxStatusRequest, view: &PodView) -> SandboxStatusResponse {
    let mut info = BTreeMap::new();
    if request.verbose {
        let process = match view.phase {
            PodPhase::Absent | PodPhase::Created => "created",
            PodPhase::Ready => "running",
            PodPhase::Ended => "stopped",
        };
        let text = json!({"pid": view.pid, "processStatus": process}).to_string();
        info.insert("info".to_owned(), text);
    }
    let state = if view.phase == PodPhase::Ready {
        READY
    } else {
        NOT_READY
    };
    SandboxStatusResponse {
        sandbox_id: request.sandbox_id,
        pid: view.pid,
        state: state.to_owned(),
        info: info.into_iter().collect(),
        created_at: Some(timestamp(view.created_ns)).into(),
        exited_at: view.exit.map(|exit| timestamp(exit.at_ns)).into(),
        ..Default::default()
    }
}
