//! A device's worker: one thread per device, spawned with the device, that owns the device's queues from
//! DRIVER_OK to reset. Devices implement [`DataPath`]; this module does the rest: it confines the thread,
//! waits for kicks, commands and the device's own descriptors, and reports failures. It never runs on a vCPU
//! thread.
//!
//! This file is the device's handle of the worker; [`thread`] is the thread, [`lifecycle`] its states,
//! [`active`] what it gives a data path. A panic in any state is reported as [`super::Report::Died`]: the
//! thread exits, and activate, reset and pause return errors.

mod active;
mod fault;
mod lifecycle;
#[cfg(test)]
mod tests;
mod thread;
mod token;

use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_queue::{DescriptorChain, QueueState};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::thread::WorkerThread;
use super::{Activation, ConfigSpace, DeviceError, Env, Spec};
use crate::memory::Memory;
use crate::process::THREAD_STACK;
pub use active::{ActiveDevice, Notify, Poller};
pub use fault::Fault;

/// Most [`super::Report::Stopped`] that one worker sends in its life: a guest can make a device fail as often
/// as it likes.
pub const MAX_REPORTS: u32 = 16;
/// How long reset and pause wait for the worker, which may be in a slow system call of the file server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A chain of descriptors that the driver made available.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// What a device does with its queues, on its worker's thread. A method that fails stops the device until
/// reset.
///
/// Between two calls, no chain is with the data path: each one that it popped has been pushed or its pop
/// undone. That is why the worker may be paused there, and the state of the queues says everything. A data path
/// that keeps chains longer implements [`DataPath::quiesce`].
pub trait DataPath {
    /// Called once per activation, before any other method: the driver set DRIVER_OK.
    ///
    /// # Errors
    /// [`Fault`] if the data path can't start.
    fn start(&mut self, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
    /// Called after [`DataPath::start`] in a VM that was restored from a snapshot: what the device had
    /// outside of its queues and its configuration space is lost, and the driver is to be told.
    ///
    /// # Errors
    /// [`Fault`] if the data path can't continue.
    fn on_restored(&mut self, _active: &mut ActiveDevice) -> Result<(), Fault> {
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
    /// The driver wrote to the configuration space, once or several times, since the last call or before
    /// DRIVER_OK.
    ///
    /// # Errors
    /// [`Fault`] if the device can't continue.
    fn on_config_write(&mut self, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
    /// Guest memory has grown: [`ActiveDevice::memory`] has all that it had, and more.
    ///
    /// # Errors
    /// [`Fault`] if the device can't continue.
    fn on_memory(&mut self, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
    /// The worker is about to be paused: push each chain that is still with the data path, and access neither
    /// guest memory nor descriptors until the next call.
    ///
    /// # Errors
    /// [`Fault`] if the device can't continue.
    fn quiesce(&mut self, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
    /// The queues are about to be taken away: drop everything that belongs to this activation.
    fn stop(&mut self, _active: &mut ActiveDevice) {}
}

/// From the device to its worker. Each command that is answered has its own channel: an answer that comes
/// after the device has stopped waiting must not be taken for the answer to a later command.
enum Command {
    Activate(Box<Activation>),
    /// Answered when the queues are released.
    Reset(SyncSender<()>),
    /// Answered with the state of the queues.
    Pause(SyncSender<Vec<QueueState>>),
    Resume,
    /// Guest memory has grown. Call the function when the data path has it.
    Memory(Arc<Memory>, OnTaken),
    /// Answered once no event is ready.
    #[cfg(any(test, feature = "fuzzing"))]
    Settle(SyncSender<()>),
    Exit,
}

/// Called on the worker's thread once it uses memory that was added.
pub type OnTaken = Box<dyn FnOnce() + Send>;

/// Gives a worker guest memory that has grown, without access to the device.
#[derive(Clone)]
pub struct MemorySender {
    name: &'static str,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl MemorySender {
    /// The device's name.
    #[must_use]
    pub fn device(&self) -> &'static str {
        self.name
    }

    /// Sends `memory`, which contains all that the device has. From `on_taken` on, the driver may use all of it
    /// for buffers. A paused worker takes it at once; one that is not active keeps it for its next activation.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited.
    pub fn send(&self, memory: Arc<Memory>, on_taken: OnTaken) -> Result<(), DeviceError> {
        let sent = send_command(&self.commands, &self.wake, Command::Memory(memory, on_taken));
        sent.map_err(DeviceError::at(self.name, "use more guest memory"))
    }
}

#[cfg(test)]
impl MemorySender {
    /// Sends `memory`, and waits until the worker uses it.
    pub fn give(&self, memory: Arc<Memory>) {
        let (taken, is_taken) = channel();
        self.send(memory, Box::new(move || taken.send(()).unwrap()))
            .unwrap();
        is_taken.recv_timeout(TIMEOUT).unwrap();
    }
}

fn send_command(commands: &Sender<Command>, wake: &EventFd, command: Command) -> Result<(), NoAnswer> {
    commands.send(command).map_err(|_| NoAnswer::Exited)?;
    // Fails only if the counter would overflow, and then the worker is awake.
    let _ = wake.write(1);
    Ok(())
}

/// Why the worker did not carry out a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Its thread panicked, which it has reported.
    #[error("the worker's thread has exited")]
    Exited,
    /// It is in a system call that takes longer than this.
    #[error("the worker's thread did not answer within {0:?}")]
    TimedOut(Duration),
}

/// The device's handle of its worker. Dropping it ends the thread and joins it.
pub struct Worker {
    name: &'static str,
    config: Arc<ConfigSpace>,
    commands: Sender<Command>,
    /// Wakes the thread after a command was sent or the configuration space was written.
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    pub(super) timeout: Duration,
}

impl Worker {
    /// Spawns the thread for the device that `spec` describes and returns once it has confined itself.
    /// `build` constructs the data path on that thread before it is confined, so it may open what the data
    /// path needs.
    ///
    /// # Errors
    /// [`DeviceError`] if the thread can't be spawned, `build` fails, or the thread can't be confined.
    pub fn spawn<D: DataPath>(
        spec: &Spec,
        env: &Env,
        build: impl FnOnce() -> Result<D, Box<dyn Error + Send + Sync>> + Send + 'static,
    ) -> Result<Self, DeviceError> {
        let name = spec.name;
        let no_eventfd = DeviceError::at(name, "create an eventfd");
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(&no_eventfd)?;
        let config = Arc::new(ConfigSpace::new(
            spec.config.clone(),
            spec.config_writable.clone(),
            wake.try_clone().map_err(&no_eventfd)?,
        ));
        let (commands, command_receiver) = channel();
        let (ready_sender, ready_receiver) = sync_channel(1);
        let setup = thread::Setup {
            name,
            profile: spec.profile,
            env: env.clone(),
            commands: command_receiver,
            wake: wake.try_clone().map_err(&no_eventfd)?,
            config: Arc::clone(&config),
        };
        let body = move || {
            // Sending can't fail: spawn keeps the receiver until it has received.
            match WorkerThread::prepare(setup, build) {
                Err(error) => drop(ready_sender.send(Err(error))),
                Ok(worker_thread) => {
                    drop(ready_sender.send(Ok(())));
                    worker_thread.run();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(THREAD_STACK)
            .spawn(body)
            .map_err(DeviceError::at(name, "spawn the worker's thread"))?;
        let worker = Self {
            name,
            config,
            commands,
            wake: Arc::new(wake),
            thread: Some(thread),
            timeout: TIMEOUT,
        };
        match ready_receiver.recv() {
            Ok(ready) => ready.map(|()| worker),
            Err(_) => Err(DeviceError::at(name, "prepare the worker's thread")(
                "it panicked",
            )),
        }
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The device's configuration space.
    #[must_use]
    pub fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    /// Hands the queues to the worker.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited.
    pub fn activate(&self, activation: Activation) -> Result<(), DeviceError> {
        self.send_command(Command::Activate(Box::new(activation)))
            .map_err(DeviceError::at(self.name, "activate"))
    }

    /// Takes the queues away from the worker; returns once it has released them.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited or does not answer within 10 s.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.ask(Command::Reset)
            .map_err(DeviceError::at(self.name, "release the queues"))
    }

    /// Stops serving the queues; returns their state once nothing of theirs is in progress. See
    /// [`super::Device::pause`].
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited or does not answer within 10 s.
    pub fn pause(&self) -> Result<Vec<QueueState>, DeviceError> {
        self.ask(Command::Pause)
            .map_err(DeviceError::at(self.name, "pause"))
    }

    /// Continues after [`Worker::pause`].
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited.
    pub fn resume(&self) -> Result<(), DeviceError> {
        self.send_command(Command::Resume)
            .map_err(DeviceError::at(self.name, "resume"))
    }

    /// Waits until the worker, which must not be paused, has handled all that was ready.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn settle(&self) {
        self.ask(Command::Settle).unwrap();
    }

    /// See [`MemorySender`].
    #[must_use]
    pub fn memory_sender(&self) -> MemorySender {
        MemorySender {
            name: self.name,
            commands: self.commands.clone(),
            wake: Arc::clone(&self.wake),
        }
    }

    /// Sends a command and waits for its answer.
    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, NoAnswer> {
        let (sender, answer): (_, Receiver<T>) = sync_channel(1);
        self.send_command(command(sender))?;
        answer.recv_timeout(self.timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => NoAnswer::TimedOut(self.timeout),
            RecvTimeoutError::Disconnected => NoAnswer::Exited,
        })
    }

    fn send_command(&self, command: Command) -> Result<(), NoAnswer> {
        send_command(&self.commands, &self.wake, command)
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
