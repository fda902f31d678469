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

use crate::bundle::{self, Outline};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::{Container, ExecRequest, Request, Size};
use crate::error::{Error, StepFailed};
use crate::guest::{CallError, CgroupFiles, Exit, Guest};
use crate::identity::{self, Identity};
use crate::io::{Expected, Paths, Streams, Subject};
use crate::process::{Deleted, Name, Reply, Tag};
use crate::service::publisher::Publisher;
use crate::task_state::{Freeze, TaskState};
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
    pub paths: Paths,
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

/// A call of containerd's.
#[derive(Debug)]
pub enum Call {
    Create(Request, Reply<u32>),
    Exec(ExecRequest, Reply<()>),
    Start(Name, Reply<u32>),
    State(Name, Reply<View>),
    Wait(Name, Reply<Exit>),
    Kill {
        name: Name,
        signal: u32,
        all: bool,
        reply: Reply<()>,
    },
    Delete(Name, Reply<Deleted>),
    CloseStdin(Name, Reply<()>),
    Resize(Name, Size, Reply<()>),
    Pids(String, Reply<Vec<Listed>>),
    Pause(String, Reply<()>),
    Resume(String, Reply<()>),
    /// The resources object of the OCI specification, JSON.
    Update(String, Vec<u8>, Reply<()>),
    Stats(String, Reply<CgroupFiles>),
    /// Ends the shim where it has no containers, or `now`.
    Shutdown {
        now: bool,
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
    Started(Tag, Result<Option<u32>, Error>),
    Exited(Tag, Exit),
    /// Init's end has waited long enough for the ends of the processes beside it.
    HeldTooLong(Tag),
    /// All output of an ended process is written, or has had its time.
    Drained(Tag),
    /// The container of this init is frozen or thawed, as was asked; or could not be.
    Froze(Tag, Result<(), Error>, Reply<()>),
    /// So many processes in the container of this init were killed for want of memory.
    OutOfMemory(Tag, u64),
    /// The agent's stream is lost.
    AgentLost(String),
    /// The VM can't go on, for this reason.
    Hopeless(StepFailed),
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
    outline: Outline,
    config: Option<Config>,
    pod: Pod,
    publisher: Publisher,
    recorder: Recorder,
    queue: mpsc::Sender<Event>,
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
    pub fn new(
        identity: Identity,
        publisher: Publisher,
        begun_ns: u64,
    ) -> (Self, mpsc::Receiver<Event>, Handle) {
        let (queue, events) = mpsc::channel(QUEUE);
        let handle = Handle(queue.clone());
        let outline = match std::fs::read(identity::config_json(&identity.bundle)) {
            Ok(bytes) => bundle::outline(&bytes),
            // The Sandbox API has no spec yet at this point.
            Err(_) => Outline::default(),
        };
        let pod = Pod {
            id: identity.id.clone(),
            namespace: identity.namespace.clone(),
            containerd_address: identity.address.clone(),
            bundle: identity.bundle.clone(),
            shim_pid: std::process::id(),
            vmm_pid: None,
            cgroup: None,
            created: clock::realtime().as_secs(),
            state: "creating".into(),
        };
        let recorder = Recorder::new(identity.directory(), begun_ns);
        let sandbox = Self {
            identity,
            outline,
            config: None,
            pod,
            publisher,
            recorder,
            queue,
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
        (sandbox, events, handle)
    }

    /// Starts the VM, then handles events until the shim is to end.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        if let Err(failed) = self.start_vm() {
            self.vm_ended(failed);
        }
        while let Some(event) = events.recv().await {
            self.handle(event);
            if self.is_over() {
                break;
            }
        }
        self.clean_up();
        if let Some(reply) = self.shutdown.take() {
            crate::process::answer(reply, Ok(()));
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
            Event::HeldTooLong(tag) => self.held_too_long(&tag),
            Event::Drained(tag) => self.drained(&tag),
            Event::Froze(tag, result, reply) => self.froze(&tag, result, reply),
            Event::OutOfMemory(tag, kills) => self.out_of_memory(&tag, kills),
            Event::AgentLost(reason) => self.agent_lost(&reason),
            Event::Hopeless(failed) => self.end_vm(failed),
        }
    }

    fn start_vm(&mut self) -> Result<(), StepFailed> {
        let config = config::load().map_err(|error| failed("read configuration", error, None))?;
        let size = config.size(
            self.outline.memory_limit,
            self.outline.cpu_quota,
            self.outline.cpu_period,
        );
        let cgroup = Cgroup::plan(self.outline.cgroups_path.as_deref(), &self.identity.key)
            .map_err(|error| failed("plan cgroup", error, None))?;
        self.pod.cgroup = Some(cgroup.path().to_owned());
        self.write_pod();
        let started = Vm::start(&config, size, &self.identity.id, &cgroup, &self.outline.cpus);
        self.cgroup = Some(cgroup);
        let deadline = config.boot_deadline;
        self.config = Some(config);
        let (vm, followed) = started.map_err(|error| {
            let hint = matches!(&error, vm::Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
            let hint = hint.then(|| "install Nacre again, or set its place in config.toml; `nacre doctor` checks it".into());
            failed("start VM", error, hint)
        })?;
        self.pod.vmm_pid = Some(vm.pid());
        self.write_pod();
        self.recorder.step("VMM started", clock::monotonic_ns());
        self.vm = Some(vm);
        tokio::spawn(vm::follow(followed, self.queue.clone()));
        self.watch_boot(deadline);
        Ok(())
    }

    /// A number for a process, which no other one has.
    fn tag(&mut self, name: Name) -> Tag {
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        Tag { name, serial }
    }

    /// Opens the streams of a process; the guest's ends are expected from now on.
    fn open_streams(&mut self, paths: &Paths, container: &str) -> Result<(Streams, Stdio), StepFailed> {
        let subject = Subject {
            namespace: &self.identity.namespace,
            container,
        };
        let next_port = &mut self.next_port;
        let (streams, stdio, expected): (_, _, Vec<Expected>) = Streams::open(paths, subject, || {
            let port = *next_port;
            *next_port = port.wrapping_add(1);
            port
        })
        .map_err(|error| failed("open streams", error, None))?;
        self.ports.extend(expected);
        Ok((streams, stdio))
    }

    /// Guest's ends of `streams` that have not come are not expected any more.
    fn forget_ports(&mut self, streams: &Streams) {
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
fn say_ignored(name: &Name, fields: &[Finding]) {
    for field in fields {
        crate::log::warn(format_args!(
            "{name}: {} is ignored: {}",
            field.path, field.reason
        ));
    }
}
