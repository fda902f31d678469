//! One process as the sandbox's owner holds it, a container's init or one beside it: its state, its streams, who waits
//! for what. No I/O of its own.

use tokio::sync::oneshot;

use super::task_state::{Input, TaskState};
use crate::error::Error;
use crate::exit::Exit;
use crate::process_id::{ProcessId, ProcessKey};
use crate::streams::{StdioPaths, Streams};

/// Where the answer to a call goes. A caller that is gone does not mind.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Answers `reply`; one that nobody waits for any more is dropped.
pub fn answer<T>(reply: Reply<T>, with: Result<T, Error>) {
    drop(reply.send(with));
}

/// What Delete answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// As containerd knows the process; 0 for one that was never started.
    pub pid: u32,
    /// How it ended; None for one that was never started.
    pub exit: Option<Exit>,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Which one it is.
    pub tag: ProcessKey,
    /// Where it stands.
    pub state: TaskState,
    /// Its pid as the guest numbers it, once it has one. Never shown as a pid of the host.
    pub guest_pid: Option<u32>,
    /// Where containerd wants its streams.
    pub paths: StdioPaths,
    /// Its streams.
    pub streams: Streams,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Whether all its output has been written after its end.
    pub drained: bool,
    /// Who waits for its end.
    pub waiters: Vec<Reply<Exit>>,
    /// Who waits for it to be started.
    pub starting: Option<Reply<u32>>,
    /// Who waits for it to be deleted.
    pub deleting: Option<Reply<Deleted>>,
}

impl Process {
    /// A process in `state`.
    pub fn new(tag: ProcessKey, state: TaskState, paths: StdioPaths, streams: Streams) -> Self {
        Self {
            tag,
            state,
            guest_pid: None,
            paths,
            streams,
            exit: None,
            drained: false,
            waiters: Vec::new(),
            starting: None,
            deleting: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &ProcessId {
        &self.tag.name
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
                    "{} is {}: {input:?} can't happen",
                    self.name(),
                    self.state.name()
                ));
                false
            }
        }
    }

    /// How it ended, once that is told.
    #[must_use]
    pub fn end(&self) -> Option<Exit> {
        self.exit.filter(|_| self.state == TaskState::Stopped)
    }

    /// Its pid for containerd, given the VMM's.
    #[must_use]
    pub fn pid(&self, vmm: u32) -> u32 {
        let runs = self.name().is_init() || self.guest_pid.is_some();
        if runs { vmm } else { 0 }
    }

    /// That it can't be `wanted` in its state.
    pub fn refuse(&self, wanted: &'static str) -> Error {
        Error::State {
            name: self.name().clone(),
            state: self.state.name(),
            wanted,
        }
    }

    /// What Delete answers, given the VMM's pid.
    #[must_use]
    pub fn deleted(&self, vmm: u32) -> Deleted {
        Deleted {
            pid: self.pid(vmm),
            exit: self.exit,
        }
    }

    /// It goes: whoever still waits for something of it is told so.
    pub fn abandon(self, vmm: u32) {
        let deleted = self.deleted(vmm);
        let gone = || Error::NoProcess(self.tag.name.clone());
        for reply in self.waiters {
            answer(reply, Err(gone()));
        }
        if let Some(reply) = self.starting {
            answer(reply, Err(gone()));
        }
        if let Some(reply) = self.deleting {
            answer(reply, Ok(deleted));
        }
    }
}
