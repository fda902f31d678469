//! One container as the sandbox's owner holds it: its state, its streams, who waits for what. No I/O of its own.

use std::path::PathBuf;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::guest::Exit;
use crate::io::{Paths, Streams};
use crate::rootfs::Mount;
use crate::task_state::{Input, TaskState};

/// Where the answer to a call goes. A caller that is gone does not mind.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What Delete answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// As containerd knows the task.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

/// What containerd asks for with Create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system; none where the spec's root.path is it.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub paths: Paths,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// What it was made from.
    pub request: Request,
    /// The task's pid for containerd: the VMM's.
    pub pid: u32,
    /// Where it stands.
    pub state: TaskState,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Its streams.
    pub streams: Streams,
    /// Whether all its output has been written after its end.
    pub drained: bool,
    /// Who waits for its end.
    pub waiters: Vec<Reply<Exit>>,
    /// Who waits for it to be created.
    pub creating: Option<Reply<u32>>,
    /// Who waits for it to be started.
    pub starting: Option<Reply<u32>>,
    /// Who waits for it to be deleted.
    pub deleting: Option<Reply<Deleted>>,
}

impl Container {
    /// A container that is being created, for `reply`.
    pub fn new(request: Request, pid: u32, streams: Streams, reply: Reply<u32>) -> Self {
        Self {
            request,
            pid,
            state: TaskState::Creating,
            exit: None,
            streams,
            drained: false,
            waiters: Vec::new(),
            creating: Some(reply),
            starting: None,
            deleting: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.request.id
    }

    /// Goes on by `input`; whether it could. What can't be is logged: it is a defect, here or in the guest.
    pub fn advance(&mut self, input: Input) -> bool {
        match self.state.next(input) {
            Some(state) => {
                self.state = state;
                true
            }
            None => {
                crate::log::error(format_args!(
                    "task {} is {}: {input:?} can't happen",
                    self.id(),
                    self.state
                ));
                false
            }
        }
    }

    /// That it can't be `wanted` in its state.
    pub fn refuse(&self, wanted: &'static str) -> Error {
        Error::State {
            id: self.id().to_owned(),
            state: self.state,
            wanted,
        }
    }
}

/// Answers `reply`; one that nobody waits for any more is dropped.
pub fn answer<T>(reply: Reply<T>, with: Result<T, Error>) {
    drop(reply.send(with));
}
