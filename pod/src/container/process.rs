//! One process as the sandbox holds it, init or exec: its streams, and the callers that wait for an answer.
//! Its state is in `lifecycle`.

use tokio::sync::oneshot;

use crate::error::Error;
use crate::exit::Exit;
use crate::process_id::ProcessKey;
use crate::streams::{StdioPaths, Streams};

/// Where the answer to a call goes.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Answers `reply`. A caller that has left does not get it.
pub fn answer<T>(reply: Reply<T>, with: Result<T, Error>) {
    drop(reply.send(with));
}

/// What Delete answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The process's pid for the caller; 0 for an exec process that was never started.
    pub pid: u32,
    /// How it ended; None if it was never started.
    pub exit: Option<Exit>,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Identifies it in events.
    pub key: ProcessKey,
    /// Its pid in the guest, from the answer to Create or Start on. Never shown as a pid of the host.
    pub guest_pid: Option<u32>,
    /// Where the caller wants its streams.
    pub paths: StdioPaths,
    /// Its streams.
    pub streams: Streams,
    /// Why its start failed, until the caller of Start is answered.
    pub start_error: Option<Error>,
    /// The callers of Wait.
    pub waiters: Vec<Reply<Exit>>,
    /// The caller of Start.
    pub starting: Option<Reply<u32>>,
    /// The caller of Delete.
    pub deleting: Option<Reply<Deleted>>,
}

impl Process {
    /// A process that has not been started.
    pub fn new(key: ProcessKey, paths: StdioPaths, streams: Streams) -> Self {
        Self {
            key,
            guest_pid: None,
            paths,
            streams,
            start_error: None,
            waiters: Vec::new(),
            starting: None,
            deleting: None,
        }
    }

    /// What Delete answers for it, given the VMM's pid and how it ended.
    #[must_use]
    pub fn deleted(&self, vmm: u32, exit: Option<Exit>) -> Deleted {
        let pid = self.pid(vmm);
        Deleted { pid, exit }
    }

    /// The pid for the caller, given the VMM's: that one, or 0 for an exec process that has no pid in the
    /// guest.
    #[must_use]
    pub fn pid(&self, vmm: u32) -> u32 {
        let has_pid = self.key.name.is_init() || self.guest_pid.is_some();
        if has_pid { vmm } else { 0 }
    }

    /// Answers whoever still waits for something of this process, which is removed: `deleted` is for the
    /// caller of Delete.
    pub fn abandon(self, deleted: Deleted) {
        let gone = || Error::NoProcess(self.key.name.clone());
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
