//! A device's worker: one thread per device, made with the device, that owns the device's queues from DRIVER_OK to
//! reset. Devices implement [`DataPath`]; this file does the rest: it confines the thread, waits on kicks, commands
//! and the device's own descriptors, and turns failures into [`Report`]s. It never runs on a vCPU thread.
//!
//! ```text
//!            activate                         a DataPath method fails:
//!   Idle ───────────────▶ Active ───────────────────────────────────▶ Failed
//!    ▲                      │                needs-reset, Report::Stopped │
//!    └──────── reset ───────┴───────────────────── reset ─────────────────┘
//!   a panic anywhere: Report::Died, the thread is gone, activate and reset fail
//! ```

mod active;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueT as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, DeviceError, Env, Memory, Report};
use crate::jail::ThreadKind;
pub use active::{Active, Notify, Poller};

/// How many [`Report::Stopped`] one worker sends in its life: a guest can make a device fail as often as it likes.
pub const MAX_REPORTS: u32 = 16;
/// How long reset waits for the worker. A worker may be inside a slow system call of a file server.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Events taken from the kernel at a time.
const EVENTS: usize = 32;

const KIND_MASK: u64 = 0b11 << 62;
const COMMAND: u64 = 0b01 << 62;
const QUEUE: u64 = 0b10 << 62;

/// A chain of descriptors that the driver made available.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// Why a data path can't go on until it is reset: broken rings, or something of the host failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

impl Fault {
    /// `what` failed because of `cause`.
    pub fn new(what: &str, cause: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {cause}"))
    }
}

/// What a device does with its queues, on its worker's thread. A method that fails stops the device until reset.
pub trait DataPath {
    /// The driver is ready.
    ///
    /// # Errors
    /// Where the data path can't start.
    fn start(&mut self, _active: &mut Active) -> Result<(), Fault> {
        Ok(())
    }
    /// The driver has kicked queue `index`; the kick has been taken.
    ///
    /// # Errors
    /// Where the queue is broken.
    fn on_queue(&mut self, index: u16, active: &mut Active) -> Result<(), Fault>;
    /// A descriptor that was registered with `token` is `ready`. May come late, for one that is no more.
    ///
    /// # Errors
    /// Where the device can't go on.
    fn on_device(&mut self, _token: u64, _ready: EventSet, _active: &mut Active) -> Result<(), Fault> {
        Ok(())
    }
    /// The queues are about to be given up; everything that belongs to this activation is to be forgotten.
    fn stop(&mut self, _active: &mut Active) {}
}

enum Command {
    Activate(Box<Activation>),
    Reset,
    Stop,
}

/// The device's end of its worker. Dropping it ends the thread.
pub struct Worker {
    name: &'static str,
    commands: Sender<Command>,
    answers: Receiver<()>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread of `kind` for device `name` and returns when it has confined itself. `build` makes the data
    /// path on that thread, before it is confined: it may open what the data path needs.
    ///
    /// # Errors
    /// Where the thread can't be made, `build` fails, or the jail doesn't close.
    pub fn spawn<D: DataPath>(
        name: &'static str,
        kind: ThreadKind,
        env: &Env,
        build: impl FnOnce() -> Result<D, String> + Send + 'static,
    ) -> Result<Self, DeviceError> {
        let fail = |reason: String| DeviceError { device: name, reason };
        let wake =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| fail(format!("eventfd: {error}")))?;
        let (commands, inbox) = channel();
        let (answer, answers) = sync_channel(1);
        let (ready, is_ready) = sync_channel(1);
        let confinement = env.confinement.clone();
        let seat = Seat {
            name,
            inbox,
            answer,
            wake: wake
                .try_clone()
                .map_err(|error| fail(format!("eventfd: {error}")))?,
            report: Arc::clone(&env.report),
            reports_left: MAX_REPORTS,
        };
        let body = move || {
            let built = build().and_then(|path| {
                let poller = seat.poller().map_err(|error| format!("epoll: {error}"))?;
                confinement.confine(kind).map_err(|error| error.to_string())?;
                Ok((path, poller))
            });
            match built {
                Err(reason) => drop(ready.send(Err(reason))),
                Ok((path, poller)) => {
                    // The other end waits for this.
                    let _ = ready.send(Ok(()));
                    seat.live(path, poller);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| fail(format!("thread: {error}")))?;
        let worker = Self {
            name,
            commands,
            answers,
            wake,
            thread: Some(thread),
        };
        match is_ready.recv() {
            Ok(Ok(())) => Ok(worker),
            Ok(Err(reason)) => Err(fail(reason)),
            Err(_) => Err(fail("its worker ended while it was made".to_owned())),
        }
    }

    /// Hands the queues to the worker.
    ///
    /// # Errors
    /// Where the worker is no more.
    pub fn activate(&self, activation: Activation) -> Result<(), DeviceError> {
        self.order(Command::Activate(Box::new(activation)))
    }

    /// Takes the queues from the worker; returns when it has given them up.
    ///
    /// # Errors
    /// Where the worker is no more or does not answer.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.order(Command::Reset)?;
        self.answers
            .recv_timeout(ANSWER_WITHIN)
            .map_err(|error| self.error(format!("its worker does not give up the queues: {error}")))
    }

    fn order(&self, command: Command) -> Result<(), DeviceError> {
        self.commands
            .send(command)
            .map_err(|_| self.error("its worker has ended".to_owned()))?;
        self.wake
            .write(1)
            .map_err(|error| self.error(format!("waking its worker: {error}")))
    }

    fn error(&self, reason: String) -> DeviceError {
        DeviceError {
            device: self.name,
            reason,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker that is already gone needs no order; its end was reported.
        let _ = self.order(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The worker's own state that is not the device's.
struct Seat {
    name: &'static str,
    inbox: Receiver<Command>,
    answer: SyncSender<()>,
    wake: EventFd,
    report: Arc<dyn Fn(Report) + Send + Sync>,
    reports_left: u32,
}

enum State {
    Idle,
    Active(Active),
    Failed,
}

impl Seat {
    fn poller(&self) -> std::io::Result<Arc<Poller>> {
        let poller = Poller(Epoll::new()?);
        poller.control(
            ControlOperation::Add,
            self.wake.as_raw_fd(),
            EventSet::IN,
            COMMAND,
        )?;
        Ok(Arc::new(poller))
    }

    fn live<D: DataPath>(mut self, mut path: D, poller: Arc<Poller>) {
        let report = Arc::clone(&self.report);
        let device = self.name;
        let end = catch_unwind(AssertUnwindSafe(|| self.run(&mut path, &poller)));
        let reason = match end {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("epoll: {error}"),
            Err(panic) => panic_message(panic.as_ref()),
        };
        report(Report::Died { device, reason });
    }

    fn run<D: DataPath>(&mut self, path: &mut D, poller: &Arc<Poller>) -> std::io::Result<()> {
        let mut state = State::Idle;
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let count = match poller.0.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in events.iter().take(count) {
                let token = event.data();
                if token & KIND_MASK == COMMAND {
                    match self.obey(path, state, poller) {
                        Some(next) => state = next,
                        None => return Ok(()),
                    }
                    continue;
                }
                if let State::Active(active) = &mut state
                    && let Err(fault) = deliver(path, token, event.event_set(), active)
                {
                    self.fail(path, active, &fault);
                    state = State::Failed;
                }
            }
        }
    }

    /// Does what was ordered; None where the worker is to end.
    fn obey<D: DataPath>(&mut self, path: &mut D, mut state: State, poller: &Arc<Poller>) -> Option<State> {
        // Only this thread reads it, and epoll said that there is something.
        let _ = self.wake.read();
        while let Ok(command) = self.inbox.try_recv() {
            match (command, state) {
                (Command::Activate(activation), State::Idle) => {
                    state = self.start(path, *activation, poller);
                }
                (Command::Activate(_), busy) => {
                    self.tell("activated while active".to_owned());
                    state = busy;
                }
                (Command::Reset, before) => {
                    if let State::Active(mut active) = before {
                        release(path, &mut active);
                    }
                    state = State::Idle;
                    // A device that no longer waits for the answer has reported that itself.
                    let _ = self.answer.try_send(());
                }
                (Command::Stop, _) => return None,
            }
        }
        Some(state)
    }

    fn start<D: DataPath>(&mut self, path: &mut D, activation: Activation, poller: &Arc<Poller>) -> State {
        let mut active = Active {
            memory: activation.memory,
            features: activation.features,
            poller: Arc::clone(poller),
            interrupt: activation.interrupt,
            queues: activation.queues,
        };
        let started = admit(&mut active).and_then(|()| path.start(&mut active));
        match started {
            Ok(()) => State::Active(active),
            Err(fault) => {
                self.fail(path, &mut active, &fault);
                State::Failed
            }
        }
    }

    fn fail<D: DataPath>(&mut self, path: &mut D, active: &mut Active, fault: &Fault) {
        release(path, active);
        active.interrupt.signal_needs_reset();
        self.tell(fault.to_string());
    }

    fn tell(&mut self, reason: String) {
        if self.reports_left > 0 {
            self.reports_left = self.reports_left.saturating_sub(1);
            (self.report)(Report::Stopped {
                device: self.name,
                reason,
            });
        }
    }
}

/// Checks the queues of a new activation and waits for their kicks (virtio 1.2, 3.1.1). Each kick is an edge, so that
/// nobody needs to read the eventfd.
fn admit(active: &mut Active) -> Result<(), Fault> {
    let event_idx = active.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
    for entry in active.queues.iter_mut().filter(|entry| entry.queue.ready()) {
        if !entry.queue.is_valid(&*active.memory) {
            return Err(Fault(format!("queue {} is outside of guest memory", entry.index)));
        }
        entry.queue.set_event_idx(event_idx);
        active
            .poller
            .control(
                ControlOperation::Add,
                entry.kick.as_raw_fd(),
                EventSet::IN | EventSet::EDGE_TRIGGERED,
                QUEUE | u64::from(entry.index),
            )
            .map_err(|error| Fault::new("epoll", error))?;
    }
    Ok(())
}

/// Ends an activation. Kicks must leave the epoll set by hand: the transport may hold duplicates of them.
fn release<D: DataPath>(path: &mut D, active: &mut Active) {
    path.stop(active);
    for entry in active.queues.iter().filter(|entry| entry.queue.ready()) {
        // One that [`admit`] did not come to add is not there.
        let _ = active.poller.remove(&entry.kick);
    }
}

fn deliver<D: DataPath>(path: &mut D, token: u64, ready: EventSet, active: &mut Active) -> Result<(), Fault> {
    if token & KIND_MASK != QUEUE {
        return path.on_device(token, ready, active);
    }
    let Ok(index) = u16::try_from(token & !KIND_MASK) else {
        return Ok(());
    };
    // One that is not set up was in an activation before.
    if active.has_queue(index) {
        path.on_queue(index, active)?;
    }
    Ok(())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}
