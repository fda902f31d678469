//! A pod: one VM and its containers. One task owns all of it ([`Sandbox`]); whatever happens (a call of containerd's, a
//! word of the VMM's, an exit in the guest, a finished step) is an [`Event`] in its one queue. What takes time runs in
//! tasks of its own that hold no state and end with an event.
//!
//! ```text
//! VM: Starting ─Running─▶ Running ─agent set up─▶ Ready
//!        └──────────────────┴───────Ended───────────┴─▶ Ended (the reason stays)
//! ```

mod calls;
mod create;
mod exec;
mod exits;
mod freeze;
mod memory;
mod start;
mod timeline;
mod vm_events;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nacre_protocol::agent::{SetupResponse, Stdio};
use nacre_protocol::spec::Finding;
use nacre_protocol::state::Pod;
use nacre_protocol::vsock::FIRST_STREAM_PORT;
use tokio::sync::{mpsc, oneshot, watch};

use crate::bundle::{self, VmHints};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::{Container, CreateRequest, ExecRequest};
use crate::container::{Deleted, Reply};
use crate::container::{Freeze, TaskState};
use crate::error::{Error, StepFailed};
use crate::event::EventSink;
use crate::exit::Exit;
use crate::guest::{CallError, CgroupFiles, Guest};
use crate::identity::{self, Identity};
use crate::process_id::{ProcessId, ProcessKey};
use crate::streams::{Expected, LoggedContainer, StdioPaths, Streams, TerminalSize};
use crate::vm::{self, Vm};
use nacre_protocol::config::{self, Config};
use timeline::Recorder;

/// Events that may wait; whoever has one more waits itself (and so does the VMM, and its guest).
const QUEUE: usize = 64;

/// A process as State shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its bundle.
    pub bundle: String,
    /// Its pid for containerd.
    pub pid: u32,
    /// Where it stands.
    pub state: TaskState,
    /// Whether its container is frozen.
    pub freeze: Freeze,
    /// Its streams.
    pub paths: StdioPaths,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// A process of the guest, as Pids shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As the guest numbers it.
    pub pid: u32,
    /// Its id, where containerd started it beside init.
    pub exec: Option<String>,
}

/// A call, with where its answer goes. Calls on a process that does not exist, or whose state does not allow them, are
/// answered with an [`Error`].
#[derive(Debug)]
pub enum Call {
    /// Makes a container whose init process waits for Start; answers the task's pid.
    Create(CreateRequest, Reply<u32>),
    /// Makes an exec process known and opens its streams; nothing runs until Start.
    Exec(ExecRequest, Reply<()>),
    /// Runs the command of an init or exec process; answers its pid for the caller: the VMM's.
    Start(ProcessId, Reply<u32>),
    /// Reports a process's state.
    State(ProcessId, Reply<View>),
    /// Answers when the process has exited.
    Wait(ProcessId, Reply<Exit>),
    /// Sends a signal.
    Kill {
        /// The process.
        name: ProcessId,
        /// The signal's number.
        signal: u32,
        /// To every process of the container, if `name` is its init.
        all: bool,
        /// Answers when the signal is sent.
        reply: Reply<()>,
    },
    /// Removes a process that does not run; of an init process, the container.
    Delete(ProcessId, Reply<Deleted>),
    /// Closes standard input after what has been written.
    CloseStdin(ProcessId, Reply<()>),
    /// Sets the size of a terminal.
    Resize(ProcessId, TerminalSize, Reply<()>),
    /// Lists the processes of a container.
    Pids(String, Reply<Vec<Listed>>),
    /// Freezes all processes of a container.
    Pause(String, Reply<()>),
    /// Thaws them.
    Resume(String, Reply<()>),
    /// Changes the limits of a container: `linux.resources` of the OCI specification, JSON.
    Update(String, Vec<u8>, Reply<()>),
    /// Reads the counters of a container.
    Stats(String, Reply<CgroupFiles>),
    /// Ends the sandbox if it has no containers, or `now`.
    Shutdown {
        /// End it even if containers are left.
        now: bool,
        /// Answers when the VM has ended and the pod's files are removed.
        reply: Reply<()>,
    },
}

/// Whatever happens to a pod.
#[derive(Debug)]
pub enum Event {
    Call(Call),
    Vm(vm::Event),
    /// A step of a start, done at this monotonic time.
    Step(&'static str, u64),
    AgentSetUp(Box<Result<(Guest, SetupResponse), CallError>>),
    Created(String, Result<u32, Error>),
    /// With the process's pid in the guest where it has just got one.
    Started(ProcessKey, Result<Option<u32>, Error>),
    Exited(ProcessKey, Exit),
    /// Init's end has waited long enough for the ends of the processes beside it.
    InitExitHoldExpired(ProcessKey),
    /// All output of an ended process is written, or has had its time.
    Drained(ProcessKey),
    /// The container of this init is frozen or thawed, as was asked; or could not be.
    Froze(ProcessKey, Result<(), Error>, Reply<()>),
    /// So many processes in the container of this init were killed for want of memory.
    OutOfMemory(ProcessKey, u64),
    /// The agent's stream is lost.
    AgentLost(String),
    /// The VM can't go on, for this reason.
    VmFailed(StepFailed),
}

impl From<vm::Event> for Event {
    fn from(event: vm::Event) -> Self {
        Self::Vm(event)
    }
}

/// How far the VM has come.
#[derive(Debug, Clone)]
pub enum Progress {
    Starting,
    Running,
    Ready(Guest),
    Ended(Arc<StepFailed>),
}

/// Hands calls to a sandbox's owner.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Event>);

impl Handle {
    /// Makes the call that `call` builds around the reply's address, and waits for the reply.
    ///
    /// # Errors
    /// What the owner answers; [`Error::Closing`] where it is gone.
    pub async fn call<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Event::Call(call(reply)))
            .await
            .map_err(|_| Error::Closing)?;
        answer.await.map_err(|_| Error::Closing)?
    }
}

/// The owner of a pod.
#[derive(Debug)]
pub struct Sandbox {
    identity: Identity,
    vm_hints: VmHints,
    config: Option<Config>,
    pod: Pod,
    events: Box<dyn EventSink>,
    recorder: Recorder,
    queue: mpsc::Sender<Event>,
    received: mpsc::Receiver<Event>,
    progress: watch::Sender<Progress>,
    vm: Option<Vm>,
    cgroup: Option<Cgroup>,
    containers: BTreeMap<String, Container>,
    /// Ports on which the guest is expected to open a stream.
    ports: BTreeMap<u32, oneshot::Sender<OwnedFd>>,
    next_port: u32,
    next_serial: u64,
    agent_seen: bool,
    /// Why the VM was ended, where it was by us.
    cause: Option<StepFailed>,
    /// The VM is no longer wanted: its end is no failure.
    closing: bool,
    shutdown: Option<Reply<()>>,
}

impl Sandbox {
    /// The sandbox of `identity`, and how to call it; `begun_ns` is when containerd executed the shim. Nothing runs yet.
    pub fn new(identity: Identity, events: Box<dyn EventSink>, begun_ns: u64) -> (Self, Handle) {
        let (queue, received) = mpsc::channel(QUEUE);
        let handle = Handle(queue.clone());
        let vm_hints = match std::fs::read(identity::config_json(&identity.bundle)) {
            Ok(bytes) => bundle::vm_hints(&bytes),
            // The Sandbox API has no spec yet at this point.
            Err(_) => VmHints::default(),
        };
        let pod = Pod {
            id: identity.id.clone(),
            namespace: identity.namespace.clone(),
            containerd_address: identity.address.clone(),
            bundle: identity.bundle.clone(),
            shim_pid: std::process::id(),
            shim_start_time: crate::sys::start_time(std::process::id()),
            vmm_pid: None,
            cgroup: None,
            created: clock::realtime().as_secs(),
            state: "creating".into(),
        };
        let recorder = Recorder::new(identity.directory(), begun_ns);
        let sandbox = Self {
            identity,
            vm_hints,
            config: None,
            pod,
            events,
            recorder,
            queue,
            received,
            progress: watch::channel(Progress::Starting).0,
            vm: None,
            cgroup: None,
            containers: BTreeMap::new(),
            ports: BTreeMap::new(),
            next_port: FIRST_STREAM_PORT,
            next_serial: 0,
            agent_seen: false,
            cause: None,
            closing: false,
            shutdown: None,
        };
        (sandbox, handle)
    }

    /// Starts the VM, then handles events until the shim is to end.
    pub async fn run(mut self) {
        if let Err(failed) = self.start_vm() {
            self.vm_ended(failed);
        }
        while let Some(event) = self.received.recv().await {
            self.handle(event);
            if self.is_over() {
                break;
            }
        }
        self.clean_up();
        if let Some(reply) = self.shutdown.take() {
            crate::container::answer(reply, Ok(()));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Call(call) => self.call(call),
            Event::Vm(event) => self.vm_event(event),
            Event::Step(name, at_ns) => self.recorder.step(name, at_ns),
            Event::AgentSetUp(result) => self.agent_set_up(*result),
            Event::Created(id, result) => self.created(&id, result),
            Event::Started(tag, result) => self.started(&tag, result),
            Event::Exited(tag, exit) => self.exited(&tag, exit),
            Event::InitExitHoldExpired(tag) => self.init_exit_hold_expired(&tag),
            Event::Drained(tag) => self.drained(&tag),
            Event::Froze(tag, result, reply) => self.froze(&tag, result, reply),
            Event::OutOfMemory(tag, kills) => self.out_of_memory(&tag, kills),
            Event::AgentLost(reason) => self.agent_lost(&reason),
            Event::VmFailed(failed) => self.fail_vm(failed),
        }
    }

    fn start_vm(&mut self) -> Result<(), StepFailed> {
        let config = config::load().map_err(|error| failed("read configuration", error, None))?;
        let size = config.size(
            self.vm_hints.memory_limit,
            self.vm_hints.cpu_quota,
            self.vm_hints.cpu_period,
        );
        let cgroup = Cgroup::plan(self.vm_hints.cgroups_path.as_deref(), &self.identity.key)
            .map_err(|error| failed("plan cgroup", error, None))?;
        self.pod.cgroup = Some(cgroup.path().to_owned());
        self.write_pod();
        let started = Vm::start(&config, size, &self.identity.id, &cgroup, &self.vm_hints);
        self.cgroup = Some(cgroup);
        let deadline = config.boot_deadline;
        self.config = Some(config);
        let (vm, monitor) = started.map_err(|error| {
            let hint = matches!(&error, vm::Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
            let hint = hint.then(|| "install Nacre again, or set its place in config.toml; `nacre doctor` checks it".into());
            failed("start VM", error, hint)
        })?;
        self.pod.vmm_pid = Some(vm.pid());
        self.write_pod();
        self.recorder.step("VMM started", clock::monotonic_ns());
        self.vm = Some(vm);
        tokio::spawn(monitor.run(self.queue.clone()));
        self.watch_boot(deadline);
        Ok(())
    }

    /// A number for a process, which no other one has.
    fn tag(&mut self, name: ProcessId) -> ProcessKey {
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
        let next_port = &mut self.next_port;
        let (streams, stdio, expected): (_, _, Vec<Expected>) = Streams::open(paths, container, || {
            let port = *next_port;
            *next_port = port.wrapping_add(1);
            port
        })
        .map_err(|error| failed("open streams", error, None))?;
        self.ports.extend(expected);
        Ok((streams, stdio))
    }

    /// Guest's ends of `streams` that have not come are not expected any more.
    fn discard_ports(&mut self, streams: &Streams) {
        for port in streams.ports() {
            self.ports.remove(port);
        }
    }

    fn write_pod(&self) {
        if let Err(error) = crate::state::write_pod(&self.identity.directory(), &self.pod) {
            crate::log::error(format_args!("writing the pod's state: {error}"));
        }
    }

    /// Nothing is left to be done: the shim is to end and the VM has.
    fn is_over(&self) -> bool {
        self.shutdown.is_some() && self.vm.is_none()
    }

    /// What is left of the pod on the host goes: the directory with the socket is the last.
    fn clean_up(&mut self) {
        self.remove_cgroup();
        if let Err(error) = crate::state::remove_directory(&self.identity.directory()) {
            crate::log::error(format_args!("removing the pod's directory: {error}"));
        }
    }

    fn remove_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.remove()
        {
            crate::log::error(format_args!("removing the pod's cgroup: {error}"));
        }
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

/// Names fields of a spec that have no effect.
fn log_ignored_fields(name: &ProcessId, fields: &[Finding]) {
    for field in fields {
        crate::log::warn(format_args!(
            "{name}: {} is ignored: {}",
            field.path, field.reason
        ));
    }
}
