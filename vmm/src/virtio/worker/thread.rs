//! The worker's thread: waits for kicks, commands and the device's own descriptors, and calls the data path.
//! Started by [`super::Worker::spawn`].
//!
//! A paused thread waits for commands alone, not in epoll_wait: kicks and data of the host stay pending in
//! the epoll set, and events that were already fetched are handled after the resume.

use std::error::Error;
use std::os::fd::AsRawFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{QueueState, QueueT as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::lifecycle::{Action, Event, Lifecycle};
use super::token::Token;
use super::{ActiveDevice, Command, DataPath, Fault, MAX_REPORTS, Poller};
use crate::jail::Profile;
use crate::memory::Memory;
use crate::process::panic_text;
use crate::virtio::rings::Rings;
use crate::virtio::{Activation, ActiveQueue, ConfigSpace, DeviceError, Env, Report, WorkerDeath};

/// Most events that one epoll_wait returns.
const EVENTS_PER_WAIT: usize = 32;

/// What a thread is prepared from.
pub(super) struct Setup {
    pub(super) name: &'static str,
    pub(super) profile: &'static Profile,
    pub(super) env: Env,
    pub(super) commands: Receiver<Command>,
    pub(super) wake: EventFd,
    pub(super) config: Arc<ConfigSpace>,
}

/// The state of the thread.
pub(super) struct WorkerThread<D> {
    setup: Setup,
    path: D,
    poller: Arc<Poller>,
    lifecycle: Lifecycle,
    /// The queues in [`super::lifecycle::Phase::Active`].
    active: Option<ActiveDevice>,
    /// The queues in [`super::lifecycle::Phase::Held`].
    held: Option<Box<Activation>>,
    /// Guest memory, if it has grown.
    grown: Option<Arc<Memory>>,
    /// How many [`Report::Stopped`] may still be sent.
    reports_left: u32,
    /// Answered when no event is ready.
    #[cfg(any(test, feature = "fuzzing"))]
    settled: Option<std::sync::mpsc::SyncSender<()>>,
}

impl<D: DataPath> WorkerThread<D> {
    /// Builds the data path and confines the calling thread.
    pub(super) fn prepare(
        setup: Setup,
        build: impl FnOnce() -> Result<D, Box<dyn Error + Send + Sync>>,
    ) -> Result<Self, DeviceError> {
        let name = setup.name;
        let path = build().map_err(DeviceError::at(name, "build the data path"))?;
        let poller = new_poller(&setup.wake).map_err(DeviceError::at(name, "create an epoll set"))?;
        setup
            .env
            .confinement
            .confine(setup.profile)
            .map_err(DeviceError::at(name, "confine the worker's thread"))?;
        Ok(Self {
            setup,
            path,
            poller: Arc::new(poller),
            lifecycle: Lifecycle::NEW,
            active: None,
            held: None,
            grown: None,
            reports_left: MAX_REPORTS,
            #[cfg(any(test, feature = "fuzzing"))]
            settled: None,
        })
    }

    /// The thread's body: the event loop, and a report if it ends other than by [`Command::Exit`].
    pub(super) fn run(mut self) {
        let report = Arc::clone(&self.setup.env.report);
        let device = self.setup.name;
        let death = match catch_unwind(AssertUnwindSafe(|| self.event_loop())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => WorkerDeath::Epoll(error),
            Err(panic) => WorkerDeath::Panic(panic_text(panic.as_ref()).to_owned()),
        };
        report(Report::Died { device, death });
    }

    fn event_loop(&mut self) -> std::io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS_PER_WAIT];
        loop {
            let count = match self.poller.0.wait(self.patience(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            #[cfg(any(test, feature = "fuzzing"))]
            if count == 0
                && let Some(settled) = self.settled.take()
            {
                let _ = settled.try_send(());
            }
            for event in events.iter().take(count) {
                match Token::decode(event.data()) {
                    Token::Command => {
                        if !self.handle_commands() {
                            return Ok(());
                        }
                        self.report_config_write();
                    }
                    // A kick of an earlier activation may arrive late, for a queue that is not ready in this
                    // one.
                    Token::Queue(index) => self.call(|path, active| {
                        if active.is_ready(index) {
                            path.on_queue(index, active)
                        } else {
                            Ok(())
                        }
                    }),
                    Token::Device(token) => {
                        self.call(|path, active| path.on_event(token, event.event_set(), active));
                    }
                }
            }
        }
    }

    /// How long to wait for events, in milliseconds; -1 for any time.
    fn patience(&self) -> i32 {
        #[cfg(any(test, feature = "fuzzing"))]
        if self.settled.is_some() {
            return 0;
        }
        -1
    }

    /// Calls a method of the data path if the device is active.
    fn call(&mut self, method: impl FnOnce(&mut D, &mut ActiveDevice) -> Result<(), Fault>) {
        if let Some(active) = &mut self.active
            && let Err(fault) = method(&mut self.path, active)
        {
            self.fail(fault);
        }
    }

    fn report_config_write(&mut self) {
        if self.active.is_some() && self.setup.config.take_driver_write() {
            self.call(D::on_config_write);
        }
    }

    /// Carries out all commands that were sent, and waits for more while paused; false if the thread must
    /// exit.
    fn handle_commands(&mut self) -> bool {
        // Can't fail: epoll reported the eventfd readable, and only this thread reads it.
        let _ = self.setup.wake.read();
        loop {
            let command = if self.lifecycle.paused {
                // Fails only if the device's handle is gone.
                self.setup.commands.recv().unwrap_or(Command::Exit)
            } else {
                match self.setup.commands.try_recv() {
                    Ok(command) => command,
                    Err(_) => return true,
                }
            };
            // An answer can't be sent if the device has stopped waiting; its method then returned an error.
            match command {
                Command::Activate(activation) => self.handle(Event::Activate, Some(activation)),
                Command::Reset(released) => {
                    self.handle(Event::Reset, None);
                    let _ = released.try_send(());
                }
                Command::Pause(paused) => {
                    self.call(D::quiesce);
                    self.handle(Event::Pause, None);
                    let _ = paused.try_send(self.queue_states());
                }
                Command::Resume => self.handle(Event::Resume, None),
                Command::Memory(memory, on_taken) => {
                    self.set_memory(memory);
                    on_taken();
                }
                #[cfg(any(test, feature = "fuzzing"))]
                Command::Settle(settled) => self.settled = Some(settled),
                Command::Exit => return false,
            }
        }
    }

    /// Changes the state; `activation` comes with [`Event::Activate`].
    fn handle(&mut self, event: Event, activation: Option<Box<Activation>>) {
        let (lifecycle, action) = self.lifecycle.on(event);
        self.lifecycle = lifecycle;
        match action {
            Action::Nothing => {}
            Action::Hold => self.held = activation,
            Action::Start => {
                if let Some(activation) = activation.or_else(|| self.held.take()) {
                    self.start(*activation);
                }
            }
            Action::Stop => self.stop(),
            Action::Drop => self.held = None,
            Action::Refuse => self.report_stopped(Fault::AlreadyActive),
        }
    }

    /// Replaces guest memory by `memory`, which contains it, in this activation and later ones.
    fn set_memory(&mut self, memory: Arc<Memory>) {
        self.grown = Some(Arc::clone(&memory));
        if let Some(active) = &mut self.active {
            active.memory = memory;
            self.call(D::on_memory);
        }
    }

    fn start(&mut self, activation: Activation) {
        let mut active = ActiveDevice {
            // The transport may have read it before it grew.
            memory: self.grown.clone().unwrap_or(activation.memory),
            features: activation.features,
            config: Arc::clone(&self.setup.config),
            poller: Arc::clone(&self.poller),
            interrupt: activation.interrupt,
            notified: activation
                .queues
                .iter()
                .map(|entry| entry.queue.next_used())
                .collect(),
            queues: activation.queues,
        };
        let mut started = prepare_queues(&mut active).and_then(|()| self.path.start(&mut active));
        if activation.is_restored {
            started = started
                .and_then(|()| self.path.on_restored(&mut active))
                .and_then(|()| requeue_all(&mut active));
        }
        self.active = Some(active);
        if let Err(fault) = started {
            self.fail(fault);
        }
    }

    /// Ends an activation. Removes the kicks from the epoll set explicitly: the transport may hold duplicates
    /// of them, which would keep them in the set after this activation has closed its own.
    fn stop(&mut self) {
        if let Some(mut active) = self.active.take() {
            self.path.stop(&mut active);
            for entry in active.queues.iter().filter(|entry| entry.queue.ready()) {
                // Fails for a queue that [`prepare_queues`] did not reach.
                let _ = self.poller.remove(&entry.kick);
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        let interrupt = self.active.as_ref().map(|active| Arc::clone(&active.interrupt));
        self.handle(Event::Fault, None);
        if let Some(interrupt) = interrupt {
            interrupt.signal_needs_reset();
        }
        self.report_stopped(fault);
    }

    fn report_stopped(&mut self, fault: Fault) {
        if self.reports_left > 0 {
            self.reports_left = self.reports_left.saturating_sub(1);
            (self.setup.env.report)(Report::Stopped {
                device: self.setup.name,
                fault,
            });
        }
    }

    /// The state of the queues that the driver has given, started or not.
    fn queue_states(&self) -> Vec<QueueState> {
        let queues: &[ActiveQueue] = match (&self.active, &self.held) {
            (Some(active), _) => &active.queues,
            (None, Some(held)) => &held.queues,
            (None, None) => &[],
        };
        queues.iter().map(|entry| entry.queue.state()).collect()
    }
}

/// A new epoll set that waits for `wake`.
fn new_poller(wake: &EventFd) -> std::io::Result<Poller> {
    let poller = Poller(Epoll::new()?);
    poller.control(
        ControlOperation::Add,
        wake.as_raw_fd(),
        EventSet::IN,
        Token::Command,
    )?;
    Ok(poller)
}

/// Makes the thread look at all queues that are ready.
fn requeue_all(active: &mut ActiveDevice) -> Result<(), Fault> {
    let ready: Vec<u16> = active
        .queues
        .iter()
        .filter(|entry| entry.queue.ready())
        .map(|entry| entry.index)
        .collect();
    ready.into_iter().try_for_each(|index| active.requeue(index))
}

/// Validates the queues of a new activation and adds their kicks to the epoll set (virtio 1.2, 3.1.1). Kicks
/// are edge-triggered, so nobody has to read their eventfds.
fn prepare_queues(active: &mut ActiveDevice) -> Result<(), Fault> {
    let event_idx = active.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
    for entry in active.queues.iter_mut().filter(|entry| entry.queue.ready()) {
        Rings::of(&entry.queue)
            .check(entry.queue.max_size(), &active.memory)
            .map_err(|source| Fault::InvalidQueue {
                index: entry.index,
                source,
            })?;
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
