//! Requests that wait for the host's disk (FSYNC, FSYNCDIR and SYNCFS), carried out on a thread of their own, one
//! after the other, so that other requests need not wait for them. Called by the data path on the worker's
//! thread, which keeps the chains and writes the replies: the sync thread accesses no guest memory, so a reset
//! need not wait for it.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use virtiofsd::filesystem::Context;
use virtiofsd::fuse::{FsyncIn, InHeader, Opcode};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::NAME;
use super::handles::OpenFile;
use crate::jail::calls::fs::SYNC_PROFILE;
use crate::process::{THREAD_STACK, panic_text};
use crate::virtio::worker::Chain;
use crate::virtio::{Env, Report, WorkerDeath};

/// Most requests that the sync thread has not finished, over all activations. The worker carries out further
/// ones itself.
pub(super) const MAX_UNFINISHED: usize = 64;
/// FUSE_FSYNC_FDATASYNC.
const DATA_ONLY: u32 = 1;

/// What is made stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A file or a directory; `data_only` as by fdatasync(2).
    File { handle: u64, data_only: bool },
    /// The file system of the inode.
    FileSystem,
}

/// A request that waits for the host's disk. Inode and handle are the guest's.
#[derive(Clone, Copy)]
pub struct Request {
    /// Names the reply.
    pub unique: u64,
    /// The inode.
    pub inode: u64,
    /// Who asks.
    pub ctx: Context,
    /// What is made stable.
    pub scope: Scope,
}

impl Request {
    /// The request with this `header`, whose argument `read_argument` reads; None if it is of another kind or has
    /// no argument.
    pub fn parse(header: InHeader, read_argument: impl FnOnce() -> Option<FsyncIn>) -> Option<Self> {
        let scope = match Opcode::try_from(header.opcode) {
            Ok(Opcode::Fsync | Opcode::Fsyncdir) => {
                let argument = read_argument()?;
                Scope::File {
                    handle: argument.fh,
                    data_only: argument.fsync_flags & DATA_ONLY != 0,
                }
            }
            Ok(Opcode::Syncfs) => Scope::FileSystem,
            _ => return None,
        };
        Some(Self {
            unique: header.unique,
            inode: header.nodeid,
            ctx: header.into(),
            scope,
        })
    }
}

/// A request as the sync thread carries it out. Inode and handle are the library's.
#[derive(Clone, Copy)]
pub struct Job {
    /// The inode.
    pub inode: u64,
    /// What is made stable.
    pub scope: Scope,
}

/// A chain whose request the sync thread carries out.
pub struct Waiting {
    number: u64,
    /// The index of its queue.
    pub queue: u16,
    /// The chain.
    pub chain: Chain,
    /// Its request.
    pub request: Request,
    /// The file that was taken from [`super::handles::Handles`] for it.
    pub file: Option<OpenFile>,
}

/// The sync thread as the worker sees it. When this is dropped, the thread exits after its present call, which is
/// not waited for.
pub struct Syncs {
    jobs: Sender<(u64, Context, Job)>,
    results: Receiver<(u64, io::Result<()>)>,
    /// Readable when there are results.
    pub ready: EventFd,
    waiting: Vec<Waiting>,
    next_number: u64,
    unfinished: usize,
}

impl Syncs {
    /// Spawns the thread, which calls `carry_out` for each job; returns once it has confined itself.
    ///
    /// # Errors
    /// If the thread can't be spawned or confined.
    pub fn spawn(
        env: &Env,
        carry_out: impl Fn(Context, Job) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (jobs, received_jobs) = channel();
        let (result_sender, results) = channel();
        let (confined_sender, confined) = sync_channel(1);
        let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let signal = ready.try_clone()?;
        let env = env.clone();
        let body = move || {
            let is_confined = env.confinement.confine(&SYNC_PROFILE);
            let failed = is_confined.is_err();
            // Fails never: spawn keeps the receiver until it has received.
            let _ = confined_sender.send(is_confined);
            if failed {
                return;
            }
            let served = catch_unwind(AssertUnwindSafe(|| {
                for (number, ctx, job) in received_jobs {
                    if result_sender.send((number, carry_out(ctx, job))).is_err() {
                        return;
                    }
                    // Fails only if the counter would overflow, and then the worker is awake.
                    let _ = signal.write(1);
                }
            }));
            if let Err(panic) = served {
                (env.report)(Report::Died {
                    device: NAME,
                    death: WorkerDeath::Panic(panic_text(panic.as_ref()).to_owned()),
                });
            }
        };
        std::thread::Builder::new()
            .name("fs-sync".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(body)?;
        confined.recv()??;
        Ok(Self {
            jobs,
            results,
            ready,
            waiting: Vec::new(),
            next_number: 0,
            unfinished: 0,
        })
    }

    /// Whether [`Syncs::start`] can take another request.
    pub fn has_room(&self) -> bool {
        self.unfinished < MAX_UNFINISHED
    }

    /// Passes a request to the thread, as a job. The file that was taken for it is returned with its result.
    pub fn start(&mut self, queue: u16, chain: Chain, request: Request, work: (Job, Option<OpenFile>)) {
        let (job, file) = work;
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.unfinished = self.unfinished.saturating_add(1);
        self.waiting.push(Waiting {
            number,
            queue,
            chain,
            request,
            file,
        });
        // Fails if the thread has panicked, which it has reported: the VM ends.
        let _ = self.jobs.send((number, request.ctx, job));
    }

    /// The next request with a result, if there is one.
    pub fn next_result(&mut self) -> Option<(Waiting, io::Result<()>)> {
        loop {
            let result = self.results.try_recv().ok()?;
            if let Some(found) = self.on_result(result) {
                return Some(found);
            }
        }
    }

    /// Waits for the next result; None if no request is waiting.
    pub fn wait(&mut self) -> Option<(Waiting, io::Result<()>)> {
        while !self.waiting.is_empty() {
            // Fails if the thread has panicked, which it has reported.
            let result = self.results.recv().ok()?;
            if let Some(found) = self.on_result(result) {
                return Some(found);
            }
        }
        None
    }

    /// The request of a result; None if it was dropped by [`Syncs::forget_all`].
    fn on_result(&mut self, (number, result): (u64, io::Result<()>)) -> Option<(Waiting, io::Result<()>)> {
        self.unfinished = self.unfinished.saturating_sub(1);
        let position = self.waiting.iter().position(|waiting| waiting.number == number)?;
        Some((self.waiting.swap_remove(position), result))
    }

    /// Drops all requests, whose results will be ignored: the queues are taken away. Their files stay open until
    /// the next driver's INIT request closes all.
    pub fn forget_all(&mut self) {
        self.waiting.clear();
    }
}
