//! The agent, as the shim talks to it: a ttrpc client on the one stream that the agent opened. Calls that a healthy
//! agent answers at once have a deadline; a lost stream is told apart from an answer. Never dials, never retries.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nacre_protocol::agent::{
    AgentClient, ContainerRef, CreateContainerRequest, KillProcessRequest, ProcessRef, ResizePtyRequest,
    SetupRequest, SetupResponse, StartExecRequest, Stdio, UpdateContainerRequest, WaitOomRequest,
};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{Context, with_duration};

use crate::clock;
use crate::error::{Error, StepFailed};
use crate::exit::Exit;
use crate::process_id::ProcessId;
use crate::streams::TerminalSize;

/// Until an answer must have come. Emulated hosts take seconds for what others do in milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Most processes of a container that are told: what a guest's kernel numbers by default (`PID_MAX_DEFAULT`).
const MAX_PIDS: usize = 32_768;
/// Most lines about what has no effect that a guest may write to the log.
const MAX_IGNORED: usize = 64;

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The agent says no.
    Answer(ttrpc::Code, String),
    /// The stream is lost, most likely with the VM.
    Lost(String),
}

impl CallError {
    /// As containerd is told; `step` names what was being done where the agent did not answer.
    pub fn into_error(self, step: &str) -> Error {
        match self {
            Self::Answer(code, message) => Error::Guest { code, message },
            Self::Lost(reason) => StepFailed {
                step: step.into(),
                reason,
                hint: None,
                console: Vec::new(),
            }
            .into(),
        }
    }
}

impl From<ttrpc::Error> for CallError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Answer(status.code(), status.message),
            lost @ (ttrpc::Error::Socket(_)
            | ttrpc::Error::Nix(_)
            | ttrpc::Error::LocalClosed
            | ttrpc::Error::RemoteClosed
            | ttrpc::Error::Eof
            | ttrpc::Error::Others(_)) => Self::Lost(format!("the agent's stream: {lost}")),
        }
    }
}

/// Files of a container's cgroup in the guest, by name.
pub type CgroupFiles = HashMap<String, Vec<u8>>;

/// A guest whose agent has dialled in.
#[derive(Clone)]
pub struct Guest {
    client: AgentClient,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guest")
    }
}

fn reference(container_id: &str) -> ContainerRef {
    ContainerRef {
        container_id: container_id.to_owned(),
        ..Default::default()
    }
}

fn process(name: &ProcessId) -> ProcessRef {
    ProcessRef {
        container_id: name.container.clone(),
        exec_id: name.exec.clone(),
        ..Default::default()
    }
}

fn soon() -> Context {
    with_duration(DEADLINE)
}

impl Guest {
    /// Takes over the stream that the agent opened.
    ///
    /// # Errors
    /// Where the descriptor is no Unix socket that can be waited on.
    pub fn new(stream: OwnedFd) -> std::io::Result<Self> {
        let socket = Socket::try_from(UnixStream::from(stream))?;
        Ok(Self {
            client: AgentClient::new(Client::new(socket)),
        })
    }

    /// The first call: builds are compared, the guest learns the time and its name.
    ///
    /// # Errors
    /// [`CallError`], with FAILED_PRECONDITION where the builds differ.
    pub async fn setup(&self, hostname: &str) -> Result<SetupResponse, CallError> {
        let request = SetupRequest {
            build_id: nacre_protocol::BUILD_ID.to_owned(),
            realtime_ns: clock::realtime_ns(),
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        Ok(self.client.setup(soon(), &request).await?)
    }

    /// Makes a container whose init waits at its gate; gives its pid in the guest.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn create(&self, id: &str, spec: Vec<u8>, stdio: Stdio) -> Result<u32, CallError> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let created = self.client.create_container(soon(), &request).await?;
        for ignored in created.ignored.iter().take(MAX_IGNORED) {
            crate::log::warn(format_args!("{id}: ignored: {ignored}"));
        }
        Ok(created.pid)
    }

    /// Opens the gate.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn start(&self, id: &str) -> Result<(), CallError> {
        self.client.start_container(soon(), &reference(id)).await?;
        Ok(())
    }

    /// Runs a further process in a container; gives its pid in the guest.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn start_exec(&self, name: &ProcessId, spec: Vec<u8>, stdio: Stdio) -> Result<u32, CallError> {
        let request = StartExecRequest {
            container_id: name.container.clone(),
            exec_id: name.exec.clone(),
            process: spec,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        Ok(self.client.start_exec(soon(), &request).await?.pid)
    }

    /// Waits for the end of a process, however long it takes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn wait(&self, name: &ProcessId) -> Result<Exit, CallError> {
        let exit = self
            .client
            .wait_process(Context::default(), &process(name))
            .await?;
        Ok(Exit {
            status: exit.exit_status,
            at_ns: exit.exited_at_ns,
            oom_kills: exit.oom_kills,
        })
    }

    /// Sends a signal to a process, or to all in its container.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn kill(&self, name: &ProcessId, signal: u32, all: bool) -> Result<(), CallError> {
        let request = KillProcessRequest {
            process: Some(process(name)).into(),
            signal,
            all,
            ..Default::default()
        };
        self.client.kill_process(soon(), &request).await?;
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn resize(&self, name: &ProcessId, size: TerminalSize) -> Result<(), CallError> {
        let request = ResizePtyRequest {
            process: Some(process(name)).into(),
            width: size.width.into(),
            height: size.height.into(),
            ..Default::default()
        };
        self.client.resize_pty(soon(), &request).await?;
        Ok(())
    }

    /// Freezes a container's processes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn pause(&self, id: &str) -> Result<(), CallError> {
        self.client.pause_container(soon(), &reference(id)).await?;
        Ok(())
    }

    /// Thaws them.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn resume(&self, id: &str) -> Result<(), CallError> {
        self.client.resume_container(soon(), &reference(id)).await?;
        Ok(())
    }

    /// Changes the limits that `resources` names: the object of the OCI specification, JSON.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), CallError> {
        let request = UpdateContainerRequest {
            container_id: id.to_owned(),
            resources,
            ..Default::default()
        };
        self.client.update_container(soon(), &request).await?;
        Ok(())
    }

    /// What the guest's kernel counts of a container.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stats(&self, id: &str) -> Result<CgroupFiles, CallError> {
        Ok(self.client.container_stats(soon(), &reference(id)).await?.files)
    }

    /// Waits, however long it takes, until more than `known` processes of a container were killed for want of memory;
    /// gives how many.
    ///
    /// # Errors
    /// [`CallError`], with NOT_FOUND where the container is gone.
    pub async fn wait_oom(&self, id: &str, known: u64) -> Result<u64, CallError> {
        let request = WaitOomRequest {
            container_id: id.to_owned(),
            known_kills: known,
            ..Default::default()
        };
        Ok(self.client.wait_oom(Context::default(), &request).await?.kills)
    }

    /// The processes in a container, as the guest numbers them.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>, CallError> {
        let mut pids = self.client.list_pids(soon(), &reference(id)).await?.pids;
        pids.truncate(MAX_PIDS);
        Ok(pids)
    }

    /// Removes a stopped container.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete(&self, id: &str) -> Result<(), CallError> {
        self.client.delete_container(soon(), &reference(id)).await?;
        Ok(())
    }
}
