//! The sandbox's one queue: whatever happens to a pod is an [`Event`] in it, so that the state machines see
//! everything in one order.

use std::collections::BTreeMap;
use std::time::Duration;

use nacre_protocol::agent::SetupResponse;
use nacre_protocol::vsock::StreamAddress;
use tokio::sync::mpsc;

use super::resize::Resized;
use super::{Call, PodView};
use crate::container::{Deleted, Reply};
use crate::error::{Error, StepFailed};
use crate::exit::Exit;
use crate::forward::Connection;
use crate::guest::{CallError, Guest};
use crate::network::{self, Tied};
use crate::process_id::ProcessKey;
use crate::vm::{self, RequestError};

/// Events that may wait; a sender of one more waits itself (and so does the VMM, and its guest).
const CAPACITY: usize = 64;

/// What happens to a pod.
#[derive(Debug)]
pub enum Event {
    /// A call through the handle.
    Call(Call),
    /// The VMM reports something.
    Vm(vm::Event),
    /// A step of a start was finished at this monotonic time, nanoseconds.
    Step(&'static str, u64),
    /// The agent answered Setup, or could not.
    AgentSetUp(Box<Result<(Guest, SetupResponse), CallError>>),
    /// The VMM counted the VM exits of the boot by kind, or could not.
    BootExits(Result<BTreeMap<String, u64>, RequestError>),
    /// The job of a Create ended: init's pid in the guest, None for the pause container.
    Created(ProcessKey, Result<Option<u32>, Error>),
    /// The guest answered a start: an exec process's pid in the guest, None for init.
    Started(ProcessKey, Result<Option<u32>, Error>),
    /// The guest reported an exit.
    Exited(ProcessKey, Exit),
    /// Init's exit has been held for the exits of exec processes for as long as allowed.
    InitExitHoldExpired(ProcessKey),
    /// Init has exited, and the rest of its output does not get written.
    InitOutputStalled(ProcessKey),
    /// The deadline of a SIGKILL to this init process has passed; whether the agent has answered a ping since.
    KillExpired(ProcessKey, bool),
    /// The agent has become silent, or answers again.
    HeartbeatChanged(bool),
    /// All output of an ended process is written, or its deadline has passed.
    Drained(ProcessKey),
    /// The container with this id is removed from the guest and the VMM, or could not be: the answer to its
    /// Delete.
    Deleted(String, Reply<Deleted>, Result<Deleted, Error>),
    /// The guest answered Pause or Resume of the container with this init.
    FreezeAnswered(ProcessKey, Result<(), Error>),
    /// The guest has OOM-killed this many processes of the container with this init.
    OutOfMemory(ProcessKey, u64),
    /// The links of the pod's network namespace are tied to taps, or could not be.
    LinksTied(Box<Result<Tied, network::Error>>),
    /// The guest has the links that were made before the container with this init was started, or could not
    /// get them.
    LinksAttached(ProcessKey, Result<(), Error>),
    /// The shim has entered or left the pod's cgroup, or the reason why not.
    ShimMoved(Result<(), String>),
    /// The pod's network namespace is as it was found, or the reason why not.
    NetworkReleased(Result<(), String>),
    /// A client has connected to the localhost of the pod's network namespace.
    ForwardAccepted(Connection),
    /// A forwarded connection has ended; this was the address of its stream.
    ForwardEnded(StreamAddress),
    /// A change of the VM's size has ended.
    Resized(Box<Resized>),
    /// The guest needs this much memory besides that at boot, MiB, or could not be asked.
    MemoryWanted(Result<u32, CallError>),
    /// The guest may be asked again for its need of memory.
    MemoryFollowed,
    /// The VM's size may be written to disk again.
    SizeDue,
    /// The VM is to get the devices that every VM has.
    CommonDevicesDue,
    /// A deadline for the next Create has passed; there had been so many calls of it.
    UnusedFor(Duration, u64),
    /// The agent's stream is lost.
    AgentLost(String),
    /// The agent is ready, and PodCall::Start waits for it.
    PodReady(Reply<PodView>),
    /// The VM can't go on, for this reason.
    VmFailed(StepFailed),
}

impl From<vm::Event> for Event {
    fn from(event: vm::Event) -> Self {
        Self::Vm(event)
    }
}

/// The sending end.
#[derive(Debug, Clone)]
pub struct Queue(mpsc::Sender<Event>);

impl Queue {
    /// A queue and its receiving end.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self(sender), receiver)
    }

    /// Queues `event`, once there is room.
    pub async fn send(&self, event: impl Into<Event>) {
        // Fails only if the sandbox task has exited, and then the shim is exiting, too.
        let _ = self.0.send(event.into()).await;
    }

    /// The plain sender, for the VMM's monitor.
    pub fn sender(&self) -> mpsc::Sender<Event> {
        self.0.clone()
    }

    /// Queues what `work` ends with; `work` runs in a task of its own that holds no state.
    pub fn send_result(&self, work: impl Future<Output = Event> + Send + 'static) {
        let queue = self.clone();
        tokio::spawn(async move { queue.send(work.await).await });
    }

    /// Queues `event` after `delay`, unless the sandbox task has exited by then.
    pub fn send_after(&self, delay: Duration, event: Event) {
        let queue = self.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(delay, queue.0.closed()).await.is_err() {
                queue.send(event).await;
            }
        });
    }

    /// Queues `call`.
    ///
    /// # Errors
    /// [`Error::Closing`] if the sandbox task has exited.
    pub async fn call(&self, call: Call) -> Result<(), Error> {
        self.0.send(Event::Call(call)).await.map_err(|_| Error::Closing)
    }
}
