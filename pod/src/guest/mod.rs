//! The agent's ttrpc client, on the one stream that the agent opened. Calls that a healthy agent answers at
//! once have a deadline; a deadline that passes is an error of its own kind, apart from a refusal and from a
//! lost stream. Never connects, never retries.

mod call_error;
mod clock;
mod counters;
mod mirror;
mod setup;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::{
    AgentClient, ContainerRef, CreateContainerRequest, DiskRef, Empty, Family, ForwardRequest,
    KillProcessRequest, PluggedMemory, ProcessRef, ResizePtyRequest, ResizeRequest, ResizeResponse,
    StartExecRequest, Stdio, UpdateContainerRequest, WaitMemoryRequest, WaitOomRequest,
};
use nacre_protocol::text::printable;
use nacre_protocol::vsock::StreamAddress;
use tokio::sync::{Notify, oneshot};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use crate::exit::Exit;
use crate::guest_text::MAX_MESSAGE;
use crate::log;
use crate::patience::{Elapsed, within};
use crate::process_id::ProcessId;
use crate::scheduling::Scheduled;
use crate::streams::TerminalSize;

pub use self::call_error::CallError;
pub use self::counters::CgroupFiles;

/// The deadline of a call. Emulated hosts take seconds for what others do in milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// The signal as the agent takes it.
pub const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();
/// The deadline of a ping.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// The highest exit status that a process can have.
const MAX_EXIT_STATUS: u32 = 255;
/// Most ignored fields of a reply that are logged.
const MAX_IGNORED: usize = 64;

/// A guest whose agent has connected.
#[derive(Clone)]
pub struct Guest {
    client: AgentClient,
    /// Notified when a call has timed out.
    timed_out: Arc<Notify>,
    /// Deadlines are longer while it waits for a CPU.
    vmm: Scheduled,
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

/// Without a deadline of ttrpc's, which it would report as a lost stream: [`DEADLINE`] is measured here.
fn context() -> Context {
    Context::default()
}

/// Whether the agent has answered a call, if only by refusing it.
fn is_answer<T>(answer: &ttrpc::Result<T>) -> bool {
    matches!(answer, Ok(_) | Err(ttrpc::Error::RpcStatus(_)))
}

/// Logs fields of a request that the agent ignores. The shim has removed those that its own check ignores, so
/// that these are fields that only the guest can decide about, such as devices that it does not have.
fn log_ignored(name: &ProcessId, fields: &[String]) {
    for field in fields.iter().take(MAX_IGNORED) {
        crate::log::warn(format_args!("{name}: ignored: {}", printable(field, MAX_MESSAGE)));
    }
}

impl Guest {
    /// Takes over the stream that the agent opened. `vmm` is the VMM of its guest.
    ///
    /// # Errors
    /// If the descriptor is not a Unix socket that epoll accepts.
    pub fn new(stream: OwnedFd, vmm: Scheduled) -> std::io::Result<Self> {
        let socket = Socket::try_from(UnixStream::from(stream))?;
        Ok(Self {
            client: AgentClient::new(Client::new(socket)),
            timed_out: Arc::new(Notify::new()),
            vmm,
        })
    }

    /// Waits for the answer to `call` until [`DEADLINE`].
    async fn within_deadline<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T, CallError> {
        match within(DEADLINE, &self.vmm, call).await {
            Ok(answer) => Ok(answer?),
            Err(Elapsed) => {
                self.timed_out.notify_one();
                Err(CallError::TimedOut)
            }
        }
    }

    /// As [`Guest::within_deadline`], for a call that makes something. The caller is told that it failed, so
    /// if the agent carries it out later all the same, `late` removes what it made.
    async fn within_deadline_or<T: Send + 'static>(
        &self,
        late: impl Future<Output = ()> + Send + 'static,
        call: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
    ) -> Result<T, CallError> {
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            let answer = call.await;
            if let Err(Ok(_too_late)) = sender.send(answer) {
                late.await;
            }
        });
        // The task ends without an answer only with the runtime.
        let answer = async { answer.await.unwrap_or(Err(ttrpc::Error::LocalClosed)) };
        self.within_deadline(answer).await
    }

    async fn remove_late_container(self, init: ProcessId) {
        log::warn(format_args!(
            "{init} was created after Create had timed out and is removed"
        ));
        let _ = self.kill(&init, SIGKILL, true).await;
        let _ = self.wait(&init).await;
        if let Err(error) = self.delete(&init.container).await {
            log::error(format_args!("removing {init}: {error:?}"));
        }
    }

    async fn kill_late_exec(self, name: ProcessId) {
        log::warn(format_args!(
            "{name} was started after Start had timed out and is killed"
        ));
        if let Err(error) = self.kill(&name, SIGKILL, false).await {
            log::error(format_args!("killing {name}: {error:?}"));
        }
    }

    async fn resume_late_pause(self, id: String) {
        log::warn(format_args!(
            "{id} was paused after Pause had timed out and is resumed"
        ));
        if let Err(error) = self.resume(&id).await {
            log::error(format_args!("resuming {id}: {error:?}"));
        }
    }

    /// Waits until a call has timed out.
    pub async fn timed_out(&self) {
        self.timed_out.notified().await;
    }

    /// Waits, without a deadline, until the agent answers a call that does nothing; false if its stream is lost. It
    /// refuses to list the processes of a container that can't exist.
    pub async fn ping(&self) -> bool {
        let listed = self.client.list_pids(Context::default(), &reference("")).await;
        is_answer(&listed)
    }

    /// Whether the agent answers at all, within [`PING_DEADLINE`].
    pub async fn answers(&self) -> bool {
        within(PING_DEADLINE, &self.vmm, self.ping())
            .await
            .unwrap_or(false)
    }

    /// Creates a container whose init process waits for [`Guest::start`]; returns its pid in the guest.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn create(&self, request: CreateContainerRequest) -> Result<u32, CallError> {
        let (client, init) = (self.client.clone(), ProcessId::init(&request.container_id));
        let call = async move { client.create_container(Context::default(), &request).await };
        let late = Self::remove_late_container(self.clone(), init.clone());
        let created = self.within_deadline_or(late, call).await?;
        log_ignored(&init, &created.ignored);
        Ok(created.pid)
    }

    /// Lets a container's init process run its command.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn start(&self, id: &str) -> Result<(), CallError> {
        self.within_deadline(self.client.start_container(context(), &reference(id)))
            .await?;
        Ok(())
    }

    /// Runs an exec process in a container; returns its pid in the guest.
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
        let client = self.client.clone();
        let call = async move { client.start_exec(Context::default(), &request).await };
        let late = Self::kill_late_exec(self.clone(), name.clone());
        let started = self.within_deadline_or(late, call).await?;
        log_ignored(name, &started.ignored);
        Ok(started.pid)
    }

    /// Waits for the exit of a process, without a deadline.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn wait(&self, name: &ProcessId) -> Result<Exit, CallError> {
        let exit = self
            .client
            .wait_process(Context::default(), &process(name))
            .await?;
        Ok(Exit {
            status: exit.exit_status.min(MAX_EXIT_STATUS),
            at_ns: exit.exited_at_ns,
            oom_kills: exit.oom_kills,
        })
    }

    /// Sends `signal` to a process, or to all processes of its container.
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
        self.within_deadline(self.client.kill_process(context(), &request))
            .await?;
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
        self.within_deadline(self.client.resize_pty(context(), &request))
            .await?;
        Ok(())
    }

    /// Tells the guest how many vCPUs shall be online and how much memory it has besides that at boot, and
    /// waits until it has them. It may have less.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn resize_vm(&self, vcpus: u8, memory: PluggedMemory) -> Result<ResizeResponse, CallError> {
        let request = ResizeRequest {
            vcpus: vcpus.into(),
            memory: Some(memory).into(),
            ..Default::default()
        };
        self.within_deadline(self.client.resize(context(), &request))
            .await
    }

    /// Waits, without a deadline, until the containers need another amount of memory than `memory`, which the
    /// VM has; returns how much they need besides that at boot, MiB.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn wait_memory(&self, memory: PluggedMemory) -> Result<u32, CallError> {
        let request = WaitMemoryRequest {
            memory: Some(memory).into(),
            ..Default::default()
        };
        let response = self.client.wait_memory(Context::default(), &request).await?;
        Ok(response.plugged_mib)
    }

    /// Freezes all processes of a container. If this is too late, they are thawed again.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn pause(&self, id: &str) -> Result<(), CallError> {
        let (client, request) = (self.client.clone(), reference(id));
        let call = async move { client.pause_container(Context::default(), &request).await };
        let late = Self::resume_late_pause(self.clone(), id.to_owned());
        self.within_deadline_or(late, call).await?;
        Ok(())
    }

    /// Thaws all processes of a container.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn resume(&self, id: &str) -> Result<(), CallError> {
        self.within_deadline(self.client.resume_container(context(), &reference(id)))
            .await?;
        Ok(())
    }

    /// Changes the limits of a container that `resources` names: `linux.resources` of the OCI specification,
    /// JSON.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), CallError> {
        let request = UpdateContainerRequest {
            container_id: id.to_owned(),
            resources,
            ..Default::default()
        };
        let updated = self
            .within_deadline(self.client.update_container(context(), &request))
            .await?;
        log_ignored(&ProcessId::init(id), &updated.ignored);
        Ok(())
    }

    /// Waits, without a deadline, until more than `known` processes of a container have been OOM-killed;
    /// returns how many.
    ///
    /// # Errors
    /// [`CallError`], with NOT_FOUND if the container was deleted.
    pub async fn wait_oom(&self, id: &str, known: u64) -> Result<u64, CallError> {
        let request = WaitOomRequest {
            container_id: id.to_owned(),
            known_kills: known,
            ..Default::default()
        };
        Ok(self.client.wait_oom(Context::default(), &request).await?.kills)
    }

    /// Has the agent connect to `port` of localhost and copy to and from its stream at `stream`; waits, without
    /// a deadline, until both directions have ended.
    ///
    /// # Errors
    /// [`CallError`], with UNAVAILABLE if nothing accepts the connection and ABORTED if it was reset.
    pub async fn forward(&self, family: Family, port: u16, stream: StreamAddress) -> Result<(), CallError> {
        let request = ForwardRequest {
            family: family.into(),
            port: port.into(),
            stream: stream.to_bits(),
            ..Default::default()
        };
        self.client.forward(Context::default(), &request).await?;
        Ok(())
    }

    /// Drops what the guest has cached of a removed container's files, which must be gone from the shared tree.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn forget_files(&self, id: &str) -> Result<(), CallError> {
        self.within_deadline(self.client.forget_files(context(), &reference(id)))
            .await?;
        Ok(())
    }

    /// Removes the disk with this serial number from the guest, which writes what it has cached of it.
    ///
    /// # Errors
    /// [`CallError`], with INTERNAL if a file system of it is mounted.
    pub async fn remove_disk(&self, serial: &str) -> Result<(), CallError> {
        let request = DiskRef {
            serial: serial.to_owned(),
            ..Default::default()
        };
        self.within_deadline(self.client.remove_disk(context(), &request))
            .await?;
        Ok(())
    }

    /// Has the guest find the devices that were attached to the VM since its boot.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn find_devices(&self) -> Result<(), CallError> {
        self.within_deadline(self.client.find_devices(context(), &Empty::new()))
            .await?;
        Ok(())
    }

    /// Removes a stopped container.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete(&self, id: &str) -> Result<(), CallError> {
        self.within_deadline(self.client.delete_container(context(), &reference(id)))
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
