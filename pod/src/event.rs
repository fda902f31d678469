//! What the engine reports: each change of a task's state, once, in order. The door that a caller came
//! through ([`EventSink`]) forwards them in its own form, for containerd as TaskCreate, TaskStart, TaskExit
//! and so on.

use crate::container::CreateRequest;
use crate::exit::Exit;
use crate::process_id::ProcessId;

/// A change of a task's state. `pid` is always the VMM's host pid.
#[derive(Debug)]
pub enum TaskEvent<'a> {
    /// Create succeeded.
    Created {
        /// What Create asked for.
        request: &'a CreateRequest,
        /// The task's pid.
        pid: u32,
    },
    /// Start of an init process succeeded.
    Started {
        /// The container's id.
        id: &'a str,
        /// The task's pid.
        pid: u32,
    },
    /// Exec made an exec process known.
    ExecAdded {
        /// The container's id.
        id: &'a str,
        /// The exec id.
        exec: &'a str,
    },
    /// Start of an exec process succeeded.
    ExecStarted {
        /// The container's id.
        id: &'a str,
        /// The exec id.
        exec: &'a str,
        /// The task's pid.
        pid: u32,
    },
    /// A process that had been started exited; init's exit is the last of its container.
    Exited {
        /// The process.
        name: &'a ProcessId,
        /// The task's pid.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// All processes of a container are frozen.
    Paused {
        /// The container's id.
        id: &'a str,
    },
    /// The processes of a container run again.
    Resumed {
        /// The container's id.
        id: &'a str,
    },
    /// The guest's kernel OOM-killed a process of the container.
    OutOfMemory {
        /// The container's id.
        id: &'a str,
    },
    /// Delete removed a container.
    Deleted {
        /// The container's id.
        id: &'a str,
        /// The task's pid.
        pid: u32,
        /// How its init process ended.
        exit: Exit,
    },
}

/// Receives the engine's events. Called on the engine's only thread, so an implementation queues and returns
/// at once.
pub trait EventSink: std::fmt::Debug {
    /// Takes one event.
    fn publish(&self, event: &TaskEvent<'_>);
}
