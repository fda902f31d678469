//! The agent's requests, one method each, with their replies or refusals.

use nacre_protocol::agent::*;
use serde_json::Value;

use super::container::{Stdio, accept, process};
use super::{Answer, Guest, answer, context};

impl Guest {
    /// Starts `process` in container `id` as exec process `exec_id`, and accepts the streams that are wanted.
    pub async fn exec_as(
        &mut self,
        id: &str,
        exec_id: &str,
        process: Value,
        streams: [bool; 3],
    ) -> Answer<(u32, Stdio)> {
        let (listeners, stdio) = self.listen(streams);
        let request = StartExecRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: serde_json::to_vec(&process).unwrap(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let started = answer(self.client().start_exec(context(), &request).await)?;
        Ok((started.pid, accept(listeners)))
    }

    /// Starts `command` as an exec process with all three streams.
    pub async fn exec(&mut self, id: &str, exec_id: &str, command: &[&str]) -> Answer<(u32, Stdio)> {
        self.exec_as(id, exec_id, process(command), [true; 3]).await
    }

    pub async fn wait_exec(&self, id: &str, exec_id: &str) -> Answer<WaitProcessResponse> {
        answer(
            self.client()
                .wait_process(context(), &exec_ref(id, exec_id))
                .await,
        )
    }

    pub async fn kill_exec(&self, id: &str, exec_id: &str, signal: u32) -> Answer<Empty> {
        let request = KillProcessRequest {
            process: Some(exec_ref(id, exec_id)).into(),
            signal,
            ..Default::default()
        };
        answer(self.client().kill_process(context(), &request).await)
    }

    pub async fn resize(&self, id: &str, exec_id: &str, width: u32, height: u32) -> Answer<Empty> {
        let request = ResizePtyRequest {
            process: Some(exec_ref(id, exec_id)).into(),
            width,
            height,
            ..Default::default()
        };
        answer(self.client().resize_pty(context(), &request).await)
    }

    pub async fn pause(&self, id: &str) -> Answer<Empty> {
        answer(self.client().pause_container(context(), &container_ref(id)).await)
    }

    pub async fn resume(&self, id: &str) -> Answer<Empty> {
        answer(
            self.client()
                .resume_container(context(), &container_ref(id))
                .await,
        )
    }

    pub async fn update(&self, id: &str, resources: Value) -> Answer<UpdateContainerResponse> {
        let request = UpdateContainerRequest {
            container_id: id.to_owned(),
            resources: serde_json::to_vec(&resources).unwrap(),
            ..Default::default()
        };
        answer(self.client().update_container(context(), &request).await)
    }

    pub async fn stats(&self, id: &str) -> Answer<ContainerStatsResponse> {
        answer(self.client().container_stats(context(), &container_ref(id)).await)
    }

    pub async fn wait_oom(&self, id: &str, known_kills: u64) -> Answer<WaitOomResponse> {
        let request = WaitOomRequest {
            container_id: id.to_owned(),
            known_kills,
            ..Default::default()
        };
        answer(self.client().wait_oom(context(), &request).await)
    }

    pub async fn start_container(&self, id: &str) -> Answer<Empty> {
        answer(self.client().start_container(context(), &container_ref(id)).await)
    }

    pub async fn wait(&self, id: &str) -> Answer<WaitProcessResponse> {
        answer(self.client().wait_process(context(), &process_ref(id)).await)
    }

    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Answer<Empty> {
        let process = Some(process_ref(id)).into();
        let request = KillProcessRequest {
            process,
            signal,
            all,
            ..Default::default()
        };
        answer(self.client().kill_process(context(), &request).await)
    }

    pub async fn pids(&self, id: &str) -> Answer<Vec<u32>> {
        answer(self.client().list_pids(context(), &container_ref(id)).await).map(|answer| answer.pids)
    }

    pub async fn delete(&self, id: &str) -> Answer<Empty> {
        answer(
            self.client()
                .delete_container(context(), &container_ref(id))
                .await,
        )
    }

    pub async fn setup(&self, build_id: &str) -> Answer<SetupResponse> {
        self.setup_as(SetupRequest {
            build_id: build_id.to_owned(),
            ..Default::default()
        })
        .await
    }

    /// Sets up a pod whose user namespace has the first 65536 ids from `first` on.
    pub async fn setup_users(&self, first: u32) -> Answer<SetupResponse> {
        let range = IdRange {
            host: first,
            size: 65_536,
            ..Default::default()
        };
        self.setup_as(SetupRequest {
            build_id: nacre_protocol::BUILD_ID.to_owned(),
            uids: vec![range.clone()],
            gids: vec![range],
            ..Default::default()
        })
        .await
    }

    async fn setup_as(&self, request: SetupRequest) -> Answer<SetupResponse> {
        answer(self.client().setup(context(), &request).await)
    }
}

fn container_ref(id: &str) -> ContainerRef {
    ContainerRef {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn process_ref(id: &str) -> ProcessRef {
    exec_ref(id, "")
}

fn exec_ref(id: &str, exec_id: &str) -> ProcessRef {
    ProcessRef {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    }
}
