//! The agent's ttrpc service: each method takes the request's fields, calls `container`, and fills in the
//! reply. The ttrpc server calls it; it holds no state of a container.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nacre_protocol::BUILD_ID;
use nacre_protocol::agent::{
    Agent, ChangeMirrorRequest, ChangeMirrorResponse, ContainerRef, ContainerStatsResponse,
    CorrectClockRequest, CreateContainerRequest, CreateContainerResponse, DiskRef, Empty, ForwardRequest,
    KillProcessRequest, ListPidsResponse, MirrorRef, Network, ProcessRef, ReadClockResponse,
    ResizePtyRequest, ResizeRequest, ResizeResponse, SetupRequest, SetupResponse, StartExecRequest,
    StartExecResponse, UpdateContainerRequest, UpdateContainerResponse, WaitMemoryRequest,
    WaitMemoryResponse, WaitOomRequest, WaitOomResponse, WaitProcessResponse, create_agent,
};
use nacre_protocol::fault::{self, FaultPoint};
use ttrpc::asynchronous::{Service as Methods, TtrpcContext};

use crate::clock::{Clock, Measurement};
use crate::container::{Containers, check_signal};
use crate::cpus::Cpus;
use crate::dial::Dialer;
use crate::disk;
use crate::entropy;
use crate::error::Error;
use crate::forward::forward;
use crate::guest_init;
use crate::memory::Memory;
use crate::network;
use crate::pci;
use crate::pod;
use crate::reaper::realtime_ns;

/// Longest build id of a shim that an error message repeats, in characters.
const MAX_BUILD_ID: usize = 100;

/// How this life of the guest has begun.
#[derive(Debug, Clone, Copy)]
pub enum Life {
    /// By a boot. The times are in microseconds of the guest's monotonic clock.
    Booted {
        /// When `main` began.
        started_us: u64,
        /// When the stream to the host was open.
        dialed_us: u64,
    },
    /// From a snapshot, which was made after `main` had begun. Devices may have been attached before the guest
    /// went on.
    Restored,
}

/// What belongs to the guest and not to a container.
pub struct GuestState {
    /// The wall clock.
    pub clock: Arc<Clock>,
    /// The memory.
    pub memory: Memory,
    /// The vCPUs.
    pub cpus: Cpus,
}

/// The service's state.
pub struct Service {
    containers: Arc<Containers>,
    dialer: Dialer,
    life: Life,
    /// None unless this agent is PID 1 of a guest, and so owns it.
    guest: Option<GuestState>,
}

impl Service {
    /// The service of `containers`.
    pub fn new(
        containers: Arc<Containers>,
        dialer: Dialer,
        life: Life,
        guest: Option<GuestState>,
    ) -> Arc<Self> {
        Arc::new(Self {
            containers,
            dialer,
            life,
            guest,
        })
    }

    /// The service's methods by name.
    pub fn methods(self: Arc<Self>) -> HashMap<String, Methods> {
        create_agent(self)
    }

    fn guest(&self) -> Result<&GuestState, Error> {
        self.guest.as_ref().ok_or_else(|| Error::BadRequest {
            what: "this agent runs standalone: it has no guest".to_owned(),
        })
    }

    async fn set_up_network(&self, network: &Network) -> Result<(), Error> {
        match self.life {
            // The kernel knows the devices of its boot only.
            Life::Restored if network::has_devices(network) => network::set_up_attached(network).await,
            Life::Booted { .. } | Life::Restored => network::set_up(network),
        }
    }
}

fn check_build(shim: &str) -> Result<(), Error> {
    if shim == BUILD_ID {
        return Ok(());
    }
    let shim = shim.chars().take(MAX_BUILD_ID).collect();
    Err(Error::BuildMismatch {
        agent: BUILD_ID.to_owned(),
        shim,
    })
}

#[async_trait]
impl Agent for Service {
    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        check_build(&request.build_id)?;
        if self.guest.is_some() {
            // Before anything draws a random number in this life.
            entropy::seed(&request.entropy)?;
        }
        // Before the rest: the host name, the links and the sysctls are those of its namespaces.
        self.containers.enter_users(&request.uids, &request.gids)?;
        if let Some(guest) = &self.guest {
            guest
                .clock
                .set(Duration::from_nanos(request.realtime_ns.unsigned_abs()))?;
            guest_init::set_hostname(&request.hostname)?;
            self.set_up_network(&request.network).await?;
            pod::set_sysctls(&request.sysctls)?;
        }
        fault::reach(FaultPoint::AgentSetUp);
        let (started_us, dialed_us) = match self.life {
            Life::Booted {
                started_us,
                dialed_us,
            } => (started_us, dialed_us),
            Life::Restored => (0, 0),
        };
        Ok(SetupResponse {
            build_id: BUILD_ID.to_owned(),
            kernel_release: guest_init::kernel_release(),
            init_started_us: started_us,
            dialed_us,
            ..SetupResponse::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        fault::reach(FaultPoint::AgentCreates);
        let container = self.containers.create(request).await?;
        fault::reach(FaultPoint::AgentCreated);
        Ok(CreateContainerResponse {
            pid: container.init_pid(),
            ignored: container.ignored().to_vec(),
            ..CreateContainerResponse::default()
        })
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        fault::reach(FaultPoint::AgentStarts);
        self.containers.get(&request.container_id)?.start()?;
        fault::reach(FaultPoint::AgentStarted);
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRef,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let (exit, oom_kills) = self
            .containers
            .wait(&request.container_id, &request.exec_id)
            .await?;
        fault::reach(FaultPoint::AgentExits);
        Ok(WaitProcessResponse {
            exit_status: exit.status,
            exited_at_ns: exit.at_ns,
            oom_kills,
            ..WaitProcessResponse::default()
        })
    }

    async fn kill_process(&self, _: &TtrpcContext, request: KillProcessRequest) -> ttrpc::Result<Empty> {
        let process = request.process.get_or_default();
        let signal = check_signal(request.signal)?;
        fault::reach(FaultPoint::AgentKills);
        if request.all {
            self.containers.get(&process.container_id)?.kill_all(signal)?;
        } else {
            self.containers
                .process(&process.container_id, &process.exec_id)?
                .kill(signal)?;
        }
        Ok(Empty::new())
    }

    async fn start_exec(
        &self,
        _: &TtrpcContext,
        request: StartExecRequest,
    ) -> ttrpc::Result<StartExecResponse> {
        fault::reach(FaultPoint::AgentExecutes);
        let response = self.containers.exec(request).await?;
        fault::reach(FaultPoint::AgentExecuted);
        Ok(response)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let process = request.process.get_or_default();
        self.containers
            .process(&process.container_id, &process.exec_id)?
            .resize(request.width, request.height)?;
        Ok(Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.containers.get(&request.container_id)?.pause().await?;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.containers.get(&request.container_id)?.resume().await?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let container = self.containers.get(&request.container_id)?;
        Ok(UpdateContainerResponse {
            ignored: container.update(&request.resources).await?,
            ..UpdateContainerResponse::default()
        })
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        Ok(ContainerStatsResponse {
            files: self.containers.get(&request.container_id)?.stats()?,
            ..ContainerStatsResponse::default()
        })
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> ttrpc::Result<WaitOomResponse> {
        let container = self.containers.get(&request.container_id)?;
        Ok(WaitOomResponse {
            kills: container.wait_oom(request.known_kills).await?,
            ..WaitOomResponse::default()
        })
    }

    async fn list_pids(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<ListPidsResponse> {
        let pids = self.containers.get(&request.container_id)?.pids()?;
        Ok(ListPidsResponse {
            pids,
            ..ListPidsResponse::default()
        })
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<ResizeResponse> {
        let guest = self.guest()?;
        let memory = guest.memory.give(request.memory.get_or_default().into());
        let (vcpus, plugged) = tokio::join!(guest.cpus.bring(request.vcpus), memory);
        Ok(ResizeResponse {
            vcpus: vcpus?,
            plugged_mib: plugged?,
            ..ResizeResponse::default()
        })
    }

    async fn wait_memory(
        &self,
        _: &TtrpcContext,
        request: WaitMemoryRequest,
    ) -> ttrpc::Result<WaitMemoryResponse> {
        let given = request.memory.get_or_default().into();
        Ok(WaitMemoryResponse {
            plugged_mib: self.guest()?.memory.wanted(given).await?,
            ..WaitMemoryResponse::default()
        })
    }

    async fn wait_clock_lost(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        match &self.guest {
            Some(guest) => guest.clock.lost().await,
            // Without a guest, the clock is the host's.
            None => std::future::pending().await,
        }
        Ok(Empty::new())
    }

    async fn read_clock(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ReadClockResponse> {
        Ok(ReadClockResponse {
            realtime_ns: realtime_ns(),
            ..ReadClockResponse::default()
        })
    }

    async fn correct_clock(&self, _: &TtrpcContext, request: CorrectClockRequest) -> ttrpc::Result<Empty> {
        if let Some(guest) = &self.guest {
            guest.clock.correct(Measurement {
                offset_ns: request.offset_ns,
                uncertainty_ns: request.uncertainty_ns,
            })?;
        }
        Ok(Empty::new())
    }

    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        forward(&self.dialer, &request).await?;
        Ok(Empty::new())
    }

    async fn change_mirror(
        &self,
        _: &TtrpcContext,
        request: ChangeMirrorRequest,
    ) -> ttrpc::Result<ChangeMirrorResponse> {
        self.guest()?;
        Ok(pod::change_mirror(&request)?)
    }

    async fn remove_mirror(&self, _: &TtrpcContext, request: MirrorRef) -> ttrpc::Result<Empty> {
        self.guest()?;
        pod::remove_mirror(request.mirror)?;
        Ok(Empty::new())
    }

    async fn configure_network(&self, _: &TtrpcContext, request: Network) -> ttrpc::Result<Empty> {
        if self.guest.is_some() {
            network::set_up_attached(&request).await?;
        }
        Ok(Empty::new())
    }

    async fn find_devices(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        if self.guest.is_some() {
            pci::find_attached().await?;
        }
        Ok(Empty::new())
    }

    async fn remove_disk(&self, _: &TtrpcContext, request: DiskRef) -> ttrpc::Result<Empty> {
        if self.guest.is_some() {
            disk::remove(&request.serial).await?;
        }
        Ok(Empty::new())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.containers.delete(&request.container_id).await?;
        Ok(Empty::new())
    }

    async fn forget_files(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        pod::forget(&request.container_id).await?;
        Ok(Empty::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_mismatch_names_both_builds() {
        check_build(BUILD_ID).unwrap();
        let error = check_build("0.0.9+1").unwrap_err().to_string();
        assert!(error.contains("0.0.9+1") && error.contains(BUILD_ID), "{error}");
    }
}
