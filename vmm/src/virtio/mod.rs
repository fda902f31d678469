//! Virtio devices. A device knows its queues, guest memory and one interrupt per queue, never its transport
//! (`crate::transport`), so that a second transport changes no device.
//!
//! A device is owned by its transport, which handles the driver's register accesses on a vCPU thread. On
//! DRIVER_OK the transport calls [`VirtioDevice::activate`]; from then on the queues belong to a [`worker`]
//! thread, which waits for the queues' kick eventfds and raises interrupts through [`Interrupt`]. No vCPU
//! thread ever accesses a queue.
//!
//! # How to write a device
//!
//! A device has two halves. The data path runs on the worker's thread:
//!
//! ```no_run
//! # use nacre_vmm::virtio::worker::{ActiveDevice, DataPath, Fault, Notify, Worker};
//! # use nacre_vmm::virtio::{DeviceError, Env};
//! # use nacre_vmm::jail::calls::rng;
//! struct ZeroDataPath;
//!
//! impl DataPath for ZeroDataPath {
//!     // The driver kicked queue `index`. `serve` pops each available chain, calls the closure, pushes the
//!     // chain to the used ring with the returned number of bytes, and interrupts the driver if it asked for it.
//!     fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
//!         active.serve(index, Notify::Each, |memory, chain| {
//!             // Parse the chain here: every address and length in it is the guest's. Return 0 for a
//!             // malformed request; a Fault is for broken rings and stops the device until it is reset.
//!             let _ = (memory, chain);
//!             0
//!         })
//!     }
//! }
//!
//! // The jail has a profile per kind of thread (jail/calls/); `spawn` confines the thread before it returns.
//! // The closure builds the data path on that thread, while it may still open files.
//! fn spawn(env: &Env) -> Result<Worker, DeviceError> {
//!     Worker::spawn("zero", &rng::PROFILE, env, || Ok(ZeroDataPath))
//! }
//! ```
//!
//! The other half implements [`VirtioDevice`]: constants, and `activate` and `reset` forwarded to the
//! [`worker::Worker`]. [`rng`] is the shortest complete example. Then add the device to the list in
//! `machine/virtio_devices.rs`, and test it with the driver in `testing.rs`, malformed chains included, once
//! more confined.
//!
//! Everything here reads what a guest wrote and must not panic on it, which the lints below enforce.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod fs;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;
pub mod worker;

use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::jail::Confinement;

/// Guest memory. It does not record which pages devices write, because nothing reads such a record. Whatever
/// does will give this type a bitmap that can be switched on and off.
pub type Memory = GuestMemoryMmap;

/// Notifications from a device to its driver. One implementation per transport, one double for tests.
pub trait Interrupt: Send + Sync {
    /// A used buffer notification for queue `index` (virtio 1.2, 2.3). Unknown indices are ignored.
    fn signal_queue(&self, index: u16);
    /// A configuration change notification (virtio 1.2, 2.3).
    fn signal_config(&self);
    /// Sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1): the device does nothing until the driver resets it.
    fn signal_needs_reset(&self);
}

/// A queue as the driver configured it, and the eventfd of its kicks.
pub struct ActiveQueue {
    /// The queue's index in the device, from 0.
    pub index: u16,
    /// The addresses and positions of the rings. The worker ignores a queue that the driver has not made
    /// ready, and enables VIRTIO_F_EVENT_IDX according to [`Activation::features`].
    pub queue: Queue,
    /// KVM writes this eventfd when the driver kicks the queue (ioeventfd). It need not be read.
    pub kick: EventFd,
}

/// What a device gets on DRIVER_OK.
pub struct Activation {
    /// All of guest memory.
    pub memory: Arc<Memory>,
    /// The queues, in order; exactly as many as [`VirtioDevice::queue_sizes`] has.
    pub queues: Vec<ActiveQueue>,
    /// Notifies the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Features that the driver accepted: a subset of [`VirtioDevice::features`].
    pub features: u64,
}

/// Why a device could not be created, activated or reset.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device}: {reason}")]
pub struct DeviceError {
    /// The device's [`VirtioDevice::name`].
    pub device: &'static str,
    /// The operation that failed, and its error.
    pub reason: String,
}

/// What every device gets from the VM that it belongs to.
#[derive(Clone)]
pub struct Env {
    /// Confines the device's worker thread.
    pub confinement: Confinement,
    /// Receives a worker's failures. Called on the worker's thread; must not block.
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
}

/// A failure that a device's worker reports to the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The device stopped and set DEVICE_NEEDS_RESET; the VM continues. One device reports this at most
    /// [`worker::MAX_REPORTS`] times.
    Stopped {
        /// The device's [`VirtioDevice::name`].
        device: &'static str,
        /// The text of the [`worker::Fault`].
        reason: String,
    },
    /// The worker's thread panicked and has exited: the VM must stop.
    Died {
        /// The device's [`VirtioDevice::name`].
        device: &'static str,
        /// The message of the panic, or the error of epoll_wait.
        reason: String,
    },
}

/// A virtio device as its transport uses it. The methods are called on vCPU threads, whose seccomp filter is
/// narrow: they may take locks, allocate, send on channels and write an eventfd, and must make no other
/// system call.
pub trait VirtioDevice: Send {
    /// A short name for messages, such as "vsock".
    fn name(&self) -> &'static str;
    /// The device ID (virtio 1.2, 5).
    fn device_type(&self) -> u32;
    /// The maximum size of each queue, in descriptors; one entry per queue.
    fn queue_sizes(&self) -> &[u16];
    /// The features offered (virtio 1.2, 6), among them VIRTIO_F_VERSION_1.
    fn features(&self) -> u64;
    /// Reads the device configuration space at `offset`; bytes beyond its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Starts the data path. If a queue turns out to be malformed later, the worker calls
    /// [`Interrupt::signal_needs_reset`].
    ///
    /// # Errors
    /// [`DeviceError`] if the worker can't take the queues; the transport must then set DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// Stops the data path and drops the queues; the device can then be activated again. When it returns, no
    /// thread accesses guest memory on behalf of this device. Has no effect on a device that is not active.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker does not answer; it may then still use the queues and guest memory.
    fn reset(&mut self) -> Result<(), DeviceError>;
}

/// Copies the configuration space `config` at `offset` to `data`, with zeros beyond its end.
pub(crate) fn read_config_from(config: &[u8], offset: u64, data: &mut [u8]) {
    let tail = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
        .unwrap_or_default();
    for (byte, value) in data
        .iter_mut()
        .zip(tail.iter().copied().chain(std::iter::repeat(0)))
    {
        *byte = value;
    }
}
