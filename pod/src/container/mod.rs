//! One container as the sandbox holds it: its state machine (`lifecycle`), and for each process what the
//! machine does not know: streams, and the callers that wait for an answer. No I/O of its own.

mod lifecycle;
mod process;
mod task_state;

use std::collections::BTreeMap;
use std::path::PathBuf;

use nacre_protocol::agent::Stdio;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::bundle::Pids;
use crate::error::Error;
use crate::hooks::Hooks;
use crate::mount::Mount;
use crate::poststop::Poststop;
use crate::process_id::ProcessId;
use crate::streams::{StdioPaths, TerminalSize};
pub use lifecycle::{Action, Event, Lifecycle, ProcessState, Rejected};
pub use process::{Deleted, Process, Reply, answer};
pub use task_state::{Freeze, TaskState};

/// What Create asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRequest {
    /// The container's id.
    pub id: String,
    /// The bundle: a directory with config.json.
    pub bundle: PathBuf,
    /// The root file system's mounts; empty if it is the spec's root.path.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub paths: StdioPaths,
}

/// What Exec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The new process's id.
    pub name: ProcessId,
    /// The process object of the OCI specification, JSON.
    pub process: Vec<u8>,
    /// Its streams.
    pub paths: StdioPaths,
}

/// An exec process.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Process,
    /// The process object for the guest, until Start sends it.
    pub spec: Value,
    /// The streams for the guest, until Start sends them.
    pub stdio: Stdio,
    /// The terminal's size, if it was set before there was a terminal.
    pub size: Option<TerminalSize>,
}

impl Exec {
    /// The process object for the guest, JSON; only Start sends it, once.
    pub fn take_guest_spec(&mut self) -> Vec<u8> {
        let mut process = std::mem::take(&mut self.spec);
        if let Some(size) = self.size.take() {
            let size = serde_json::json!({"width": size.width, "height": size.height});
            process["consoleSize"] = size;
        }
        process.to_string().into_bytes()
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// What Create asked for.
    pub request: CreateRequest,
    /// The task's pid for the caller: the VMM's.
    pub pid: u32,
    /// What it and its processes may do when; its keys are those of `execs`.
    pub lifecycle: Lifecycle,
    /// The init process.
    pub init: Process,
    /// The exec processes, by exec id.
    pub execs: BTreeMap<String, Exec>,
    /// OOM kills known so far, published or not.
    pub oom_kills: u64,
    /// How many TaskOOM events were due.
    pub oom_events: u32,
    /// Whose processes it sees.
    pub pids: Pids,
    /// Hooks that run on the host.
    pub hooks: Hooks,
    /// Those of them that are due when it is deleted.
    pub poststop: Poststop,
    /// Its mount points in the tree that the guest sees; none for the pause container.
    pub mount_points: Vec<PathBuf>,
    /// It uses disks of the host.
    pub has_disks: bool,
    /// The caller of Create.
    pub creating: Option<Reply<u32>>,
    /// Dropped to cancel the creation.
    pub cancel_create: Option<oneshot::Sender<()>>,
    /// TaskCreate was published; no other event of the container is without it.
    pub is_published: bool,
    /// SIGKILL was sent to init, and its deadline runs.
    pub kill_enforced: bool,
    /// The caller of Pause or Resume.
    pub freezing: Option<Reply<()>>,
}

impl Container {
    /// The process with this exec id; init for the empty one.
    pub fn process(&self, exec: &str) -> Option<&Process> {
        if exec.is_empty() {
            return Some(&self.init);
        }
        self.execs.get(exec).map(|exec| &exec.process)
    }

    /// As [`Container::process`].
    pub fn process_mut(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() {
            return Some(&mut self.init);
        }
        self.execs.get_mut(exec).map(|exec| &mut exec.process)
    }

    /// How many standard streams its processes have.
    pub fn count_streams(&self) -> usize {
        let count = |process: &Process| process.streams.addresses().len();
        let execs = self.execs.values().map(|exec| count(&exec.process));
        execs.fold(count(&self.init), usize::saturating_add)
    }

    /// The error for a container whose state does not allow it to be `wanted`.
    pub fn refuse(&self, wanted: &'static str) -> Error {
        Error::State {
            name: self.init.key.name.clone(),
            state: self.lifecycle.name(),
            wanted,
        }
    }
}
