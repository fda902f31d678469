//! One container as the sandbox's owner holds it: its init, the processes beside it, whether they are frozen. No I/O of
//! its own.

mod process;
mod task_state;

use std::collections::BTreeMap;
use std::path::PathBuf;

use nacre_protocol::agent::Stdio;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::exit::Exit;
use crate::hooks::Hooks;
use crate::mount::Mount;
use crate::process_id::ProcessId;
use crate::streams::{StdioPaths, TerminalSize};
pub use process::{Deleted, Process, Reply, answer};
pub use task_state::{Freeze, FreezeInput, Input, TaskState};

/// What containerd asks for with Create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRequest {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system; none where the spec's root.path is it.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub paths: StdioPaths,
}

/// What containerd asks for with Exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Which process it is to be.
    pub name: ProcessId,
    /// The process object of the OCI specification, JSON.
    pub process: Vec<u8>,
    /// Its streams.
    pub paths: StdioPaths,
}

/// A process beside init.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Process,
    /// What the guest is told when it is started: the process object.
    pub spec: Map<String, Value>,
    /// What the guest is told when it is started: its streams' ports.
    pub stdio: Stdio,
    /// Its terminal's size, where that was set before there was a terminal.
    pub size: Option<TerminalSize>,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// What it was made from.
    pub request: CreateRequest,
    /// The task's pid for containerd: the VMM's.
    pub pid: u32,
    /// Its init.
    pub init: Process,
    /// The processes beside it, by their ids.
    pub execs: BTreeMap<String, Exec>,
    /// Whether they are frozen.
    pub freeze: Freeze,
    /// How init ended, while processes beside it have not: their ends are told first.
    pub held: Option<Exit>,
    /// Processes that were killed for want of memory, as far as containerd was told.
    pub oom_kills: u64,
    /// How often it was told.
    pub oom_events: u32,
    /// What runs on the host around it.
    pub hooks: Hooks,
    /// Who waits for it to be created.
    pub creating: Option<Reply<u32>>,
}

impl Container {
    /// A container that is being created, for `reply`.
    pub fn new(request: CreateRequest, pid: u32, init: Process, hooks: Hooks, reply: Reply<u32>) -> Self {
        Self {
            request,
            pid,
            init,
            execs: BTreeMap::new(),
            freeze: Freeze::Thawed,
            held: None,
            oom_kills: 0,
            oom_events: 0,
            hooks,
            creating: Some(reply),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.request.id
    }

    /// The process of this id; init for the empty one.
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

    /// Whether the end of a process beside init is still to be told.
    pub fn has_live_execs(&self) -> bool {
        self.execs.values().any(|exec| exec.process.state.is_live())
    }

    /// Whether all output of the processes that have ended is written.
    pub fn is_drained(&self) -> bool {
        let ended = |process: &Process| process.state == TaskState::Stopped;
        self.init.drained
            && self
                .execs
                .values()
                .all(|exec| exec.process.drained || !ended(&exec.process))
    }

    /// Whether its command runs, frozen or not; false from the moment that init's end is known.
    pub fn is_running(&self) -> bool {
        self.init.state == TaskState::Running && self.held.is_none()
    }

    /// Whether a process may come beside init, which may still wait at its gate.
    pub fn accepts_exec(&self) -> bool {
        match self.init.state {
            TaskState::Created | TaskState::Starting => true,
            TaskState::Running => self.is_running() && self.freeze == Freeze::Thawed,
            TaskState::Creating | TaskState::Exiting | TaskState::Stopped => false,
        }
    }

    /// Goes on by `input`; whether it could.
    pub fn freeze(&mut self, input: FreezeInput) -> bool {
        match self.freeze.next(input) {
            Some(freeze) => {
                self.freeze = freeze;
                true
            }
            None => false,
        }
    }

    /// That it can't be `wanted` in its state.
    pub fn refuse(&self, wanted: &'static str) -> Error {
        let state = if self.held.is_some() {
            TaskState::Stopped.name()
        } else if self.init.state == TaskState::Running {
            self.freeze.name()
        } else {
            self.init.state.name()
        };
        Error::State {
            name: self.init.name().clone(),
            state,
            wanted,
        }
    }
}
