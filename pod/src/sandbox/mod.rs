//! A pod: one VM and its containers. One task owns all of its state ([`Sandbox`]); calls, the VMM's messages,
//! exits in the guest and finished steps are [`queue::Event`]s in its one queue. What takes time runs in
//! tasks that hold no state and end with an event.
//!
//! ```text
//! VM: Starting ─Running─▶ Running ─agent set up─▶ Ready
//!        └──────────────────┴───────Ended───────────┴─▶ Ended (the reason stays)
//! ```
//! `calls` answers what needs no change of state, `create`, `exec`, `start`, `freeze`, `kill` and `delete`
//! begin changes, `pause` answers for the pause container, `actions` carries out what a container's state
//! machine decides, `vm_life` follows the VM, `common_devices` completes it.

mod actions;
mod call;
mod calls;
mod common_devices;
mod cpus;
mod create;
mod delete;
mod exec;
mod forward;
mod freeze;
mod guest_clock;
mod heartbeat;
mod kill;
mod memory;
mod network;
mod pause;
mod pod_calls;
mod progress;
mod queue;
mod resize;
mod shim_cgroup;
mod start;
mod template;
mod timeline;
mod unused;
mod vm_life;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nacre_protocol::agent::Stdio;
use nacre_protocol::config::Config;
use nacre_protocol::fault::{self, FaultPoint};
use nacre_protocol::spec::Finding;
use nacre_protocol::state::{Pod, PodState, process_start_time};
use nacre_protocol::vsock::MAX_STREAMS;
use tokio::sync::{mpsc, watch};

use crate::cgroup::Cgroup;
use crate::container::{self, Container, Reply, answer};
use crate::error::StepFailed;
use crate::event::EventSink;
use crate::identity::{self, Identity};
use crate::mirror::Mirrors;
use crate::pod_spec::PodSpec;
use crate::process_id::{ProcessId, ProcessKey};
use crate::shared_mounts::SharedMounts;
use crate::streams::{ExpectedStreams, LoggedContainer, StdioPaths, Streams};
use crate::vm::Vm;
use crate::{clock, log};
pub use call::{Call, Handle, Listed, View};
use pod_calls::PodLife;
pub use pod_calls::{PodCall, PodPhase, PodView};
use progress::Progress;
use queue::{Event, Queue};
use resize::Sizing;
use shim_cgroup::ShimPlace;
use template::PodTemplate;
use timeline::Recorder;

/// Standard input, output and error.
const MAX_STREAMS_OF_A_PROCESS: usize = 3;

/// A pod's state; see the module.
#[derive(Debug)]
pub struct Sandbox {
    identity: Identity,
    spec: PodSpec,
    config: Option<Config>,
    template: PodTemplate,
    pod: Pod,
    events: Box<dyn EventSink>,
    recorder: Recorder,
    queue: Queue,
    received: mpsc::Receiver<Event>,
    progress: watch::Sender<Progress>,
    vm: Option<Vm>,
    network: network::PodNetwork,
    cgroup: Option<Cgroup>,
    shim_place: ShimPlace,
    /// The VM's size, once the VM was started.
    sizing: Option<Sizing>,
    containers: BTreeMap<String, Container>,
    /// Copies of volumes, once a container may have one.
    mirrors: Option<Mirrors>,
    /// Directories of the host that containers have in common.
    shared_mounts: SharedMounts,
    /// Ids of containers that are no longer in the table and not yet removed from the guest and the VMM.
    deleting: BTreeSet<String>,
    /// The streams that the agent is expected to open.
    expected_streams: ExpectedStreams,
    next_serial: u64,
    /// How often Create was called.
    creations: u64,
    agent_seen: bool,
    /// The VM has the devices that every VM has, or gets them soon.
    has_common_devices: bool,
    /// Why we ended the VM, if we did.
    cause: Option<StepFailed>,
    /// The VM is no longer wanted: its end is not a failure.
    closing: bool,
    shutdown: Option<Reply<()>>,
    pod_life: PodLife,
}

impl Sandbox {
    /// The sandbox of `identity`, which reports to `events`, and the handle to call it by. `begun_ns` is the
    /// monotonic time at which the caller executed the shim: the start's timeline counts from it. Nothing
    /// runs until [`Sandbox::run`].
    #[must_use]
    pub fn new(identity: Identity, events: Box<dyn EventSink>, begun_ns: u64) -> (Self, Handle) {
        let (queue, received) = Queue::new();
        let handle = Handle::new(queue.clone());
        let spec = match identity::read_spec(&identity.bundle) {
            Ok(bytes) => PodSpec::from_oci(&bytes),
            // Without a spec there is no container yet: PodCall::Create describes the pod.
            Err(_) => PodSpec::of_sandbox_api(),
        };
        let pod = Pod {
            id: identity.id.clone(),
            namespace: identity.namespace.clone(),
            containerd_address: identity.address.clone(),
            bundle: identity.bundle.clone(),
            shim_pid: std::process::id(),
            shim_start_time: process_start_time(std::process::id()),
            vmm_pid: None,
            cgroup: None,
            network: None,
            size: None,
            silent_since: None,
            created: clock::realtime().as_secs(),
            state: PodState::Creating,
        };
        let recorder = Recorder::new(identity.directory(), begun_ns);
        let sandbox = Self {
            identity,
            spec,
            config: None,
            template: PodTemplate::default(),
            pod,
            events,
            recorder,
            queue,
            received,
            progress: watch::channel(Progress::Starting).0,
            vm: None,
            network: network::PodNetwork::default(),
            cgroup: None,
            shim_place: ShimPlace::default(),
            sizing: None,
            containers: BTreeMap::new(),
            mirrors: None,
            shared_mounts: SharedMounts::default(),
            deleting: BTreeSet::new(),
            expected_streams: ExpectedStreams::default(),
            next_serial: 0,
            creations: 0,
            agent_seen: false,
            has_common_devices: false,
            cause: None,
            closing: false,
            shutdown: None,
            pod_life: PodLife::default(),
        };
        (sandbox, handle)
    }

    /// Starts the VM, unless a call is to start it, then handles events until Shutdown was called and the VM has
    /// ended.
    pub async fn run(mut self) {
        if self.awaits_pod() {
            // The command `delete` finds this shim by it.
            self.write_pod();
        } else if let Err(failed) = self.start_vm() {
            self.vm_ended(failed);
        }
        self.limit_unused(unused::FIRST_CREATE);
        while let Some(event) = self.received.recv().await {
            self.handle(event);
            if self.is_over() {
                break;
            }
        }
        self.clean_up();
        if let Some(reply) = self.shutdown.take() {
            answer(reply, Ok(()));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Call(call) => self.call(call),
            Event::Vm(event) => self.vm_event(event),
            Event::Step(name, at_ns) => self.recorder.step(name, at_ns),
            Event::AgentSetUp(result) => self.agent_set_up(*result),
            Event::BootExits(exits) => self.boot_exits(exits),
            Event::Created(key, result) => self.created(&key, result),
            Event::Started(key, result) => self.started(&key, result),
            Event::Exited(key, exit) => self.exited(&key, exit),
            Event::InitExitHoldExpired(key) => self.init_exit_hold_expired(&key),
            Event::InitOutputStalled(key) => self.init_output_stalled(&key),
            Event::KillExpired(key, agent_answers) => self.kill_expired(&key, agent_answers),
            Event::HeartbeatChanged(is_silent) => self.heartbeat_changed(is_silent),
            Event::Drained(key) => {
                let drained = container::Event::OutputDrained(key.name.exec.clone());
                self.advance(&key, drained);
            }
            Event::Deleted(id, reply, result) => self.deleted(&id, reply, result),
            Event::FreezeAnswered(key, result) => self.freeze_answered(&key, result),
            Event::OutOfMemory(key, kills) => self.out_of_memory(&key, kills),
            Event::LinksTied(result) => self.links_tied(*result),
            Event::LinksAttached(key, result) => self.links_attached(&key, result),
            Event::ShimMoved(moved) => self.shim_moved(moved),
            Event::NetworkReleased(result) => self.network_released(result),
            Event::ForwardAccepted(connection) => self.forward_accepted(connection),
            Event::ForwardEnded(address) => self.forward_ended(&address),
            Event::Resized(resized) => self.resized(*resized),
            Event::MemoryWanted(wanted) => self.memory_wanted(wanted),
            Event::MemoryFollowed => self.follow_memory_again(),
            Event::SizeDue => self.size_due(),
            Event::CommonDevicesDue => self.attach_common_devices(),
            Event::AgentLost(reason) => self.agent_lost(&reason),
            Event::VmFailed(failed) => self.fail_vm(failed),
            Event::UnusedFor(deadline, creations) => self.unused_for(deadline, creations),
            Event::PodReady(reply) => self.pod_ready(reply),
        }
    }

    /// A key for a new process called `name`.
    fn new_key(&mut self, name: ProcessId) -> ProcessKey {
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        ProcessKey { name, serial }
    }

    /// Opens the streams of a process; the guest's ends are expected from now on.
    fn open_streams(&mut self, paths: &StdioPaths, container: &str) -> Result<(Streams, Stdio), StepFailed> {
        let container = LoggedContainer {
            namespace: &self.identity.namespace,
            id: container,
        };
        let open = self.containers.values().map(Container::count_streams);
        if open.sum::<usize>() + MAX_STREAMS_OF_A_PROCESS > MAX_STREAMS {
            let reason = format!(
                "the pod's processes have {MAX_STREAMS} standard streams, the most that its VM may have at once"
            );
            let hint = "delete exec processes that have exited".to_owned();
            return Err(failed("open streams", reason, Some(hint)));
        }
        let opened = Streams::open(paths, container).map_err(|error| failed("open streams", error, None))?;
        let expected = self.expected_streams.add(opened.expected);
        expected.map_err(|error| failed("open streams", error, None))?;
        Ok((opened.streams, opened.stdio))
    }

    /// Refuses the guest's ends of streams that were not opened in time.
    fn discard_streams(&mut self, streams: &Streams) {
        for address in streams.addresses() {
            self.expected_streams.remove(address);
        }
    }

    fn write_pod(&self) {
        if let Err(error) = crate::state::write_pod(&self.identity.directory(), &self.pod) {
            log::error(format_args!("writing the pod's state: {error}"));
        }
    }

    fn is_over(&self) -> bool {
        self.shutdown.is_some() && self.vm.is_none() && !self.uses_cgroup()
    }

    /// Whether the shim, or a child of it that releases the network, may be in the pod's cgroup.
    fn uses_cgroup(&self) -> bool {
        self.shim_place != ShimPlace::Home || self.network.is_busy()
    }

    /// Removes what is left of the pod on the host; the directory, with the socket, is the last.
    fn clean_up(&mut self) {
        self.remove_cgroup();
        fault::reach(FaultPoint::ShutdownCgroup);
        if self.cgroup.is_some() || self.pod.network.is_some() {
            // The command `delete` finds it by pod.json.
            return;
        }
        if let Err(error) = crate::state::remove_directory(&self.identity.directory()) {
            log::error(format_args!("removing the pod's directory: {error}"));
        }
    }

    /// Removes the cgroup of a VM that has ended. One that can't be removed yet, because a process in it has not
    /// exited, is kept for the next try.
    fn remove_cgroup(&mut self) {
        if self.vm.is_some() || self.uses_cgroup() {
            return;
        }
        let Some(cgroup) = self.cgroup.take() else { return };
        if let Err(error) = cgroup.remove() {
            log::error(format_args!("removing the pod's cgroup: {error}"));
            self.cgroup = Some(cgroup);
        }
    }
}

/// Reaches a fault point when the answer and the event that are on their way have been sent.
fn reach_when_sent(point: FaultPoint) {
    if fault::ENABLED {
        tokio::spawn(async move {
            let moment = Duration::from_millis(10);
            let _elapsed = tokio::time::timeout(moment, std::future::pending::<()>()).await;
            fault::reach(point);
        });
    }
}

fn failed(step: &str, error: impl std::fmt::Display, hint: Option<String>) -> StepFailed {
    StepFailed {
        step: step.into(),
        reason: error.to_string(),
        hint,
        console: Vec::new(),
    }
}

/// Logs the fields of a spec that have no effect.
fn log_ignored_fields(name: &ProcessId, fields: &[Finding]) {
    for field in fields {
        log::warn(format_args!(
            "{name}: {} is ignored: {}",
            field.path, field.reason
        ));
    }
}
