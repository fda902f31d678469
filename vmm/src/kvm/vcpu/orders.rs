//! Orders to a vCPU's thread, and the handle by which the main thread gives them. An order is put into the
//! thread's mailbox. A thread that runs the guest looks there only after KVM_RUN has returned EINTR, so
//! whoever sends to it also sets `kvm_run.immediate_exit` and sends [`KICK_SIGNAL`]: the flag stops a thread
//! that is about to enter the guest, the signal one that is inside.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable as _, register_signal_handler};

use super::super::raw::ImmediateExit;
use crate::process::KICK_SIGNAL;

/// Called on a vCPU's thread with KVM's descriptor of it.
pub type Inspect = Box<dyn FnOnce(&VcpuFd) + Send>;

/// What a vCPU's thread is to do.
pub(super) enum Order {
    /// Run the guest. A paused thread waits for this.
    Run,
    /// Complete the guest's access that is under way, stop running the guest, and send the vCPU's number.
    Pause(Sender<u8>),
    /// Call the function, and stay paused. KVM wants the requests to a vCPU from the thread that runs it.
    Inspect(Inspect),
}

/// The thread of a vCPU has exited, because the VM has ended or because it panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread has exited")]
pub struct Exited;

/// A vCPU's thread. It exits if this is dropped while it waits for an order.
#[derive(Debug)]
pub struct VcpuThread {
    index: u8,
    orders: Sender<Order>,
    immediate_exit: Arc<ImmediateExit>,
    thread: JoinHandle<()>,
}

impl VcpuThread {
    pub(super) fn new(
        index: u8,
        orders: Sender<Order>,
        immediate_exit: Arc<ImmediateExit>,
        thread: JoinHandle<()>,
    ) -> Self {
        Self {
            index,
            orders,
            immediate_exit,
            thread,
        }
    }

    /// The vCPU's number, from 0.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Orders a paused thread to run the guest, or one that has not yet carried out [`VcpuThread::pause`] to
    /// go on after it. Does not wait.
    ///
    /// # Errors
    /// [`Exited`] if the thread has exited.
    pub fn run(&self) -> Result<(), Exited> {
        self.orders.send(Order::Run).map_err(|_| Exited)
    }

    /// Orders the thread to pause; it sends the vCPU's number to `paused` when it has. Does not wait.
    ///
    /// # Errors
    /// [`Exited`] if the thread has exited. It can also exit later, and then drops `paused`.
    pub fn pause(&self, paused: Sender<u8>) -> Result<(), Exited> {
        self.orders.send(Order::Pause(paused)).map_err(|_| Exited)?;
        self.immediate_exit.set();
        self.thread.kill(KICK_SIGNAL).map_err(|_| Exited)
    }

    /// Orders a paused thread to call `inspect`. Does not wait.
    ///
    /// # Errors
    /// [`Exited`] if the thread has exited. It can also exit later, and then drops `inspect`.
    pub fn inspect(&self, inspect: Inspect) -> Result<(), Exited> {
        self.orders.send(Order::Inspect(inspect)).map_err(|_| Exited)
    }
}

/// Gives [`KICK_SIGNAL`] a handler that does nothing. Its only effect is that a system call of the thread
/// which receives it returns EINTR.
pub(super) fn prepare_signal() -> io::Result<()> {
    register_signal_handler(KICK_SIGNAL, do_nothing)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

extern "C" fn do_nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_is_a_real_time_signal_that_the_c_library_leaves_to_programs() {
        let range = vmm_sys_util::signal::SIGRTMIN()..=vmm_sys_util::signal::SIGRTMAX();
        assert!(range.contains(&KICK_SIGNAL), "{range:?}");
    }
}
