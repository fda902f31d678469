//! The thread of one vCPU. Spawned by the machine; it runs the guest, passes port and MMIO accesses to the
//! buses, counts exits, sets the VM's outcome, and takes [`orders`] to run and to pause. It never touches a
//! virtqueue and blocks on nothing but the guest and its orders. [`state`] has the chart of its states.
#![cfg_attr(
    not(any(test, feature = "fuzzing")),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod buses;
pub mod orders;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nacre_protocol::control::Outcome;

pub use self::buses::{IoBuses, OtherExits};
use self::orders::{Order, VcpuThread};
use self::state::{Event, State};
use super::raw::ImmediateExit;
use crate::jail::{self, Confinement, Profile};
use crate::process::{THREAD_STACK, panic_text};
use crate::vm_exit::VmExit;

/// A vCPU whose thread has not been spawned.
pub struct Vcpu {
    /// Its number and APIC id, from 0.
    pub index: u8,
    /// KVM's descriptor, with CPUID and registers set.
    pub fd: VcpuFd,
    /// What its thread keeps in the jail.
    pub profile: &'static Profile,
    /// Handles the guest's port and MMIO accesses.
    pub buses: Arc<IoBuses>,
    /// Set by this thread if the guest resets or KVM fails; once it is set, by whatever thread, this thread
    /// ends.
    pub vm_exit: VmExit,
}

/// The thread's ends of its channels.
struct Mailbox {
    orders: Receiver<Order>,
    immediate_exit: Arc<ImmediateExit>,
    /// The thread sends here whether it could be confined.
    confined: Sender<Result<(), jail::Error>>,
}

impl Vcpu {
    /// Spawns the thread, which confines itself, sends the result to `confined` and is then paused: it runs
    /// no guest instruction before it is ordered to.
    ///
    /// # Errors
    /// The error of mapping KVM's page of the vCPU, of pthread_create(3), or of installing a signal handler.
    pub fn spawn(
        mut self,
        confined: Sender<Result<(), jail::Error>>,
        confinement: Confinement,
    ) -> io::Result<VcpuThread> {
        orders::prepare_signal()?;
        let immediate_exit = Arc::new(ImmediateExit::map(&self.fd)?);
        let (sender, orders) = channel();
        let index = self.index;
        let mailbox = Mailbox {
            orders,
            immediate_exit: Arc::clone(&immediate_exit),
            confined,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(THREAD_STACK)
            .spawn(move || {
                let (index, vm_exit) = (self.index, self.vm_exit.clone());
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run(&mailbox, &confinement))) {
                    vm_exit.set_fault(
                        format!("vCPU {index}"),
                        format_args!("its thread panicked: {}", panic_text(&*panic)),
                    );
                }
            })?;
        Ok(VcpuThread::new(index, sender, immediate_exit, thread))
    }

    fn run(&mut self, mailbox: &Mailbox, confinement: &Confinement) {
        let mut state = State::Confining;
        loop {
            let event = match state {
                State::Confining => confine(mailbox, confinement, self.profile),
                State::Paused => match mailbox.orders.recv() {
                    Ok(order) => self.take(order),
                    Err(_) => Event::NoController,
                },
                State::Running => self.run_until_exit(),
                State::Interrupted => {
                    // Cleared before the look: an order that is sent after it sets the flag again.
                    mailbox.immediate_exit.clear();
                    match mailbox.orders.try_recv() {
                        Ok(order) => self.take(order),
                        Err(TryRecvError::Empty) => Event::NoOrder,
                        Err(TryRecvError::Disconnected) => Event::NoController,
                    }
                }
                State::Finished => return,
            };
            state = state.next(event);
        }
    }

    /// Carries out `order` except for the change of state, which follows at once.
    fn take(&self, order: Order) -> Event {
        match order {
            Order::Run => Event::Run,
            Order::Pause(paused) => {
                // Keeps the guest's watchdogs from taking the pause for a lockup. Fails if the guest does not
                // use kvm-clock, and then there is nobody to be informed.
                let _ = self.fd.kvmclock_ctrl();
                // Fails if the controller has stopped waiting; it orders this thread to run again.
                let _ = paused.send(self.index);
                Event::Pause
            }
            Order::Inspect(inspect) => {
                inspect(&self.fd);
                Event::Inspected
            }
        }
    }

    /// Runs the guest until its next exit to user space, and handles that.
    fn run_until_exit(&mut self) -> Event {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, _)) => {
                let (size, data) = super::raw::port_data(&mut self.fd);
                self.buses.read_port(port, size, data);
            }
            Ok(VcpuExit::IoOut(port, _)) => {
                let (size, data) = super::raw::port_data(&mut self.fd);
                self.buses.write_port(port, size, data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => self.buses.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.buses.mmio.write(address, data),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {
                self.buses.other_exits.add_interrupted();
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.buses.other_exits.add_interrupted();
                return self.unless_ended(Event::Interrupted);
            }
            Ok(VcpuExit::Shutdown) => {
                self.vm_exit.set(Outcome::Reset {
                    cause: "triple fault".to_owned(),
                });
            }
            Ok(VcpuExit::InternalError) => {
                let suberror = super::raw::internal_error(&mut self.fd);
                self.set_fault(&format!("KVM internal error, suberror {suberror}"));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                self.set_fault(&format!("KVM can't enter the guest, hardware reason {reason:#x}"));
            }
            Ok(exit) => {
                self.buses.other_exits.add_unexpected();
                let exit = format!("{exit:?}");
                self.set_fault(&format!("unexpected KVM exit {exit}"));
            }
            Err(error) => self.set_fault(&format!("KVM_RUN: {error}")),
        }
        self.unless_ended(Event::Handled)
    }

    fn unless_ended(&self, event: Event) -> Event {
        if self.vm_exit.is_set() {
            Event::VmEnded
        } else {
            event
        }
    }

    /// Ends the VM with a fault that names this vCPU, `reason` and the instruction pointer.
    fn set_fault(&self, reason: &str) {
        let location = self
            .fd
            .get_regs()
            .map_or_else(|_| String::new(), |regs| format!(" at RIP {:#x}", regs.rip));
        self.vm_exit
            .set_fault(format!("vCPU {}", self.index), format_args!("{reason}{location}"));
    }
}

fn confine(mailbox: &Mailbox, confinement: &Confinement, profile: &Profile) -> Event {
    let result = confinement.confine(profile);
    let event = if result.is_ok() {
        Event::Confined
    } else {
        Event::NotConfined
    };
    match mailbox.confined.send(result) {
        Ok(()) => event,
        // The main thread has given up building the machine.
        Err(_) => Event::NotConfined,
    }
}
