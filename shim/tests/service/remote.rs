//! A handle of an init or exec process, with the calls that a client of containerd makes for it.

use anyhow::Result;
use containerd_shim_protos::api::{
    CloseIORequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, ResizePtyRequest,
    StartRequest, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::TaskClient;
use serde_json::json;

use crate::pod::soon;

#[derive(Clone)]
pub struct Remote {
    client: TaskClient,
    id: String,
    exec: String,
}

/// Packs an OCI process into an Any, as containerd's clients do.
pub fn process_any(process: &serde_json::Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process.to_string().into_bytes(),
        ..Default::default()
    }
}

impl Remote {
    pub fn init(client: &TaskClient, id: &str) -> Self {
        Self::exec(client, id, "")
    }

    pub fn exec(client: &TaskClient, id: &str, exec: &str) -> Self {
        Self {
            client: client.clone(),
            id: id.into(),
            exec: exec.into(),
        }
    }

    /// An Exec request for a process with these arguments, without streams.
    pub fn request(&self, arguments: &[&str]) -> ExecProcessRequest {
        ExecProcessRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            spec: Some(process_any(&json!({"args": arguments, "cwd": "/"}))).into(),
            ..Default::default()
        }
    }

    pub async fn add(&self, request: &ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.client.exec(soon(), request).await
    }

    /// Calls Exec and Start; returns the pid.
    pub async fn run(&self, arguments: &[&str]) -> Result<u32> {
        self.add(&self.request(arguments)).await?;
        Ok(self.start().await?)
    }

    pub async fn start(&self) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        };
        Ok(self.client.start(soon(), &request).await?.pid)
    }

    pub async fn wait(&self) -> ttrpc::Result<WaitResponse> {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        };
        self.client.wait(soon(), &request).await
    }

    pub async fn state(&self) -> ttrpc::Result<StateResponse> {
        let request = StateRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        };
        self.client.state(soon(), &request).await
    }

    pub async fn kill(&self, signal: u32) -> ttrpc::Result<Empty> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            signal,
            ..Default::default()
        };
        self.client.kill(soon(), &request).await
    }

    pub async fn delete(&self) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        };
        self.client.delete(soon(), &request).await
    }

    pub async fn close_stdin(&self) -> ttrpc::Result<Empty> {
        let request = CloseIORequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            stdin: true,
            ..Default::default()
        };
        self.client.close_io(soon(), &request).await
    }

    pub async fn resize(&self, width: u32, height: u32) -> ttrpc::Result<Empty> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: self.exec.clone(),
            width,
            height,
            ..Default::default()
        };
        self.client.resize_pty(soon(), &request).await
    }
}
