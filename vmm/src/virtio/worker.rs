//! A device's worker: one thread per device, spawned with the device, that owns the device's queues from
//! DRIVER_OK to reset. Devices implement [`DataPath`]; this file does the rest: it confines the thread, waits
//! for kicks, commands and the device's own descriptors, and reports failures. It never runs on a vCPU
//! thread.
//!
//! ```text
//!            activate                          a DataPath method fails:
//!   Idle ───────────────▶ Active ────────────────────────────────────▶ Failed
//!    ▲                      │               needs-reset, Report::Stopped  │
//!    └──────── reset ───────┴──────────────────── reset ──────────────────┘
//!   a panic in any state: Report::Died; the thread exits, activate and reset return errors
//! ```

mod active;
mod fault;
#[cfg(test)]
mod tests;
mod token;

use std::error::Error;
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

use self::token::Token;
use super::{Activation, DeviceError, Env, Memory, Report};
use crate::jail::Profile;
use crate::process::{THREAD_STACK, panic_text};
pub use active::{ActiveDevice, Notify, Poller};
pub use fault::Fault;

/// Most [`Report::Stopped`] that one worker sends in its life: a guest can make a device fail as often as it
/// likes.
pub const MAX_REPORTS: u32 = 16;
/// How long reset waits for the worker, which may be in a slow system call of the file server.
const RESET_TIMEOUT: Duration = Duration::from_secs(10);
/// Most events that one epoll_wait returns.
const EVENTS_PER_WAIT: usize = 32;

/// A chain of descriptors that the driver made available.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// What a device does with its queues, on its worker's thread. A method that fails stops the device until
/// reset.
pub trait DataPath {
    /// Called once per activation, before any other method: the driver set DRIVER_OK.
    ///
    /// # Errors
    /// [`Fault`] if the data path can't start.
    fn start(&mut self, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
    /// The driver kicked queue `index`, or the device called [`ActiveDevice::requeue`].
    ///
    /// # Errors
    /// [`Fault`] if the queue is broken.
    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault>;
    /// A descriptor that was added to the [`Poller`] with `token` is `ready`. One epoll_wait returns several
    /// events, so the device may have removed the descriptor in the meantime.
    ///
    /// # Errors
    /// [`Fault`] if the device can't continue.
    fn on_event(&mut self, _token: u64, _ready: EventSet, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
    /// The queues are about to be taken away: drop everything that belongs to this activation.
    fn stop(&mut self, _active: &mut ActiveDevice) {}
}

/// From the device to its worker.
enum Command {
    Activate(Box<Activation>),
    /// Answered when the queues are released. Each reset has its own channel: an answer that comes after its
    /// reset has timed out must not be taken for the answer to a later one.
    Reset(SyncSender<()>),
    Exit,
}

/// The device's handle of its worker. Dropping it ends the thread and joins it.
pub struct Worker {
    name: &'static str,
    commands: Sender<Command>,
    /// Wakes the thread after a command was sent.
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
    reset_timeout: Duration,
}

impl Worker {
    /// Spawns a thread with `profile` for device `name` and returns once it has confined itself. `build`
    /// constructs the data path on that thread before it is confined, so it may open what the data path
    /// needs.
    ///
    /// # Errors
    /// [`DeviceError`] if the thread can't be spawned, `build` fails, or the thread can't be confined.
    pub fn spawn<D: DataPath>(
        name: &'static str,
        profile: &'static Profile,
        env: &Env,
        build: impl FnOnce() -> Result<D, Box<dyn Error + Send + Sync>> + Send + 'static,
    ) -> Result<Self, DeviceError> {
        let fail = |reason: String| DeviceError { device: name, reason };
        let no_eventfd = |error| fail(format!("create eventfd: {error}"));
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(no_eventfd)?;
        let (commands, command_receiver) = channel();
        let (ready_sender, ready_receiver) = sync_channel(1);
        let worker_thread = WorkerThread {
            name,
            commands: command_receiver,
            wake: wake.try_clone().map_err(no_eventfd)?,
            report: Arc::clone(&env.report),
            reports_left: MAX_REPORTS,
        };
        let confinement = env.confinement.clone();
        let body = move || {
            let ready = build().map_err(|error| error.to_string()).and_then(|path| {
                let poller = worker_thread
                    .poller()
                    .map_err(|error| format!("create epoll set: {error}"))?;
                confinement.confine(profile).map_err(|error| error.to_string())?;
                Ok((path, poller))
            });
            // Sending can't fail: spawn keeps the receiver until it has received.
            match ready {
                Err(reason) => drop(ready_sender.send(Err(reason))),
                Ok((path, poller)) => {
                    drop(ready_sender.send(Ok(())));
                    worker_thread.run(path, &poller);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(THREAD_STACK)
            .spawn(body)
            .map_err(|error| fail(format!("spawn worker thread: {error}")))?;
        let worker = Self {
            name,
            commands,
            wake,
            thread: Some(thread),
            reset_timeout: RESET_TIMEOUT,
        };
        match ready_receiver.recv() {
            Ok(Ok(())) => Ok(worker),
            Ok(Err(reason)) => Err(fail(reason)),
            Err(_) => Err(fail("the worker thread panicked before it was ready".to_owned())),
        }
    }

    /// Hands the queues to the worker.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited.
    pub fn activate(&self, activation: Activation) -> Result<(), DeviceError> {
        self.send_command(Command::Activate(Box::new(activation)))
    }

    /// Takes the queues away from the worker; returns once it has released them.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited or does not answer within 10 s.
    pub fn reset(&self) -> Result<(), DeviceError> {
        let (released_sender, released) = sync_channel(1);
        self.send_command(Command::Reset(released_sender))?;
        released
            .recv_timeout(self.reset_timeout)
            .map_err(|error| self.error(format!("the worker thread has not released the queues: {error}")))
    }

    fn send_command(&self, command: Command) -> Result<(), DeviceError> {
        self.commands
            .send(command)
            .map_err(|_| self.error("the worker thread has exited".to_owned()))?;
        self.wake
            .write(1)
            .map_err(|error| self.error(format!("wake the worker thread: {error}")))
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
        // Sending fails only if the thread has exited, which it has reported itself.
        let _ = self.send_command(Command::Exit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The worker's state that is not the device's; lives on the worker's thread.
struct WorkerThread {
    name: &'static str,
    commands: Receiver<Command>,
    wake: EventFd,
    report: Arc<dyn Fn(Report) + Send + Sync>,
    /// How many [`Report::Stopped`] may still be sent.
    reports_left: u32,
}

enum WorkerState {
    Idle,
    Active(ActiveDevice),
    Failed,
}

impl WorkerThread {
    /// A new epoll set, with [`WorkerThread::wake`] in it.
    fn poller(&self) -> std::io::Result<Arc<Poller>> {
        let poller = Poller(Epoll::new()?);
        poller.control(
            ControlOperation::Add,
            self.wake.as_raw_fd(),
            EventSet::IN,
            Token::Command,
        )?;
        Ok(Arc::new(poller))
    }

    /// The thread's body: the event loop, and a report if it ends other than by [`Command::Exit`].
    fn run<D: DataPath>(mut self, mut path: D, poller: &Arc<Poller>) {
        let report = Arc::clone(&self.report);
        let device = self.name;
        let result = catch_unwind(AssertUnwindSafe(|| self.event_loop(&mut path, poller)));
        let reason = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("epoll_wait: {error}"),
            Err(panic) => panic_text(panic.as_ref()).to_owned(),
        };
        report(Report::Died { device, reason });
    }

    fn event_loop<D: DataPath>(&mut self, path: &mut D, poller: &Arc<Poller>) -> std::io::Result<()> {
        let mut state = WorkerState::Idle;
        let mut events = [EpollEvent::default(); EVENTS_PER_WAIT];
        loop {
            let count = match poller.0.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in events.iter().take(count) {
                let token = Token::decode(event.data());
                if token == Token::Command {
                    match self.handle_commands(path, state, poller) {
                        Some(next) => state = next,
                        None => return Ok(()),
                    }
                    continue;
                }
                if let WorkerState::Active(active) = &mut state
                    && let Err(fault) = dispatch(path, token, event.event_set(), active)
                {
                    self.fail(path, active, &fault);
                    state = WorkerState::Failed;
                }
            }
        }
    }

    /// Carries out all commands that were sent; None if the thread must exit.
    fn handle_commands<D: DataPath>(
        &mut self,
        path: &mut D,
        mut state: WorkerState,
        poller: &Arc<Poller>,
    ) -> Option<WorkerState> {
        // Can't fail: epoll reported the eventfd readable, and only this thread reads it.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match (command, state) {
                (Command::Activate(activation), WorkerState::Idle) => {
                    state = self.activate(path, *activation, poller);
                }
                (Command::Activate(_), other) => {
                    self.report_stopped("activated twice without a reset".to_owned());
                    state = other;
                }
                (Command::Reset(released), before) => {
                    if let WorkerState::Active(mut active) = before {
                        deactivate(path, &mut active);
                    }
                    state = WorkerState::Idle;
                    // Fails only if the device stopped waiting, and then its reset has returned an error.
                    let _ = released.try_send(());
                }
                (Command::Exit, _) => return None,
            }
        }
        Some(state)
    }

    fn activate<D: DataPath>(
        &mut self,
        path: &mut D,
        activation: Activation,
        poller: &Arc<Poller>,
    ) -> WorkerState {
        let mut active = ActiveDevice {
            memory: activation.memory,
            features: activation.features,
            poller: Arc::clone(poller),
            interrupt: activation.interrupt,
            queues: activation.queues,
        };
        let started = prepare_queues(&mut active).and_then(|()| path.start(&mut active));
        match started {
            Ok(()) => WorkerState::Active(active),
            Err(fault) => {
                self.fail(path, &mut active, &fault);
                WorkerState::Failed
            }
        }
    }

    fn fail<D: DataPath>(&mut self, path: &mut D, active: &mut ActiveDevice, fault: &Fault) {
        deactivate(path, active);
        active.interrupt.signal_needs_reset();
        self.report_stopped(fault.to_string());
    }

    fn report_stopped(&mut self, reason: String) {
        if self.reports_left > 0 {
            self.reports_left = self.reports_left.saturating_sub(1);
            (self.report)(Report::Stopped {
                device: self.name,
                reason,
            });
        }
    }
}

/// Validates the queues of a new activation and adds their kicks to the epoll set (virtio 1.2, 3.1.1). Kicks
/// are edge-triggered, so nobody has to read their eventfds.
fn prepare_queues(active: &mut ActiveDevice) -> Result<(), Fault> {
    let event_idx = active.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
    for entry in active.queues.iter_mut().filter(|entry| entry.queue.ready()) {
        if !entry.queue.is_valid(&*active.memory) {
            return Err(Fault::InvalidQueue(entry.index));
        }
        entry.queue.set_event_idx(event_idx);
        active
            .poller
            .control(
                ControlOperation::Add,
                entry.kick.as_raw_fd(),
                EventSet::IN | EventSet::EDGE_TRIGGERED,
                Token::Queue(entry.index),
            )
            .map_err(Fault::io("watch a queue's kick"))?;
    }
    Ok(())
}

/// Ends an activation. Removes the kicks from the epoll set explicitly: the transport may hold duplicates of
/// them, which would keep them in the set after this activation has closed its own.
fn deactivate<D: DataPath>(path: &mut D, active: &mut ActiveDevice) {
    path.stop(active);
    for entry in active.queues.iter().filter(|entry| entry.queue.ready()) {
        // Fails for a queue that [`prepare_queues`] did not reach.
        let _ = active.poller.remove(&entry.kick);
    }
}

/// Calls the method of `path` for an event.
fn dispatch<D: DataPath>(
    path: &mut D,
    token: Token,
    ready: EventSet,
    active: &mut ActiveDevice,
) -> Result<(), Fault> {
    match token {
        // A kick of an earlier activation may arrive late, for a queue that is not ready in this one.
        Token::Queue(index) if active.is_ready(index) => path.on_queue(index, active),
        Token::Device(token) => path.on_event(token, ready, active),
        Token::Queue(_) | Token::Command => Ok(()),
    }
}
