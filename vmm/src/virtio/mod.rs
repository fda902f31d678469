//! Virtio devices. A device knows its queues, guest memory and one interrupt per queue, never its transport
//! (`crate::transport`), so that a second transport changes no device.
//!
//! A device is owned by its transport, which talks to the guest's driver on a vCPU thread. On DRIVER_OK the
//! transport calls [`VirtioDevice::activate`]; from then on the data path belongs to a [`worker`] thread that waits
//! on the queues' kick descriptors and raises interrupts through [`Interrupt`]. No vCPU thread ever touches a queue.
//!
//! Everything here reads what a guest wrote, so nothing here may panic on it: the lints below see to that.
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
use vm_memory::bitmap::AtomicBitmap;
use vmm_sys_util::eventfd::EventFd;

use crate::jail::Confinement;

/// Guest memory, with a bitmap of the pages that devices have written, as snapshots will want.
pub type Memory = GuestMemoryMmap<AtomicBitmap>;

/// How a device tells its driver that something happened. One implementation a transport, one double for tests.
pub trait Interrupt: Send + Sync {
    /// Used buffers stand in queue `index` (virtio 1.2, 2.7.10). Unknown indices are ignored.
    fn signal_queue(&self, index: u16);
    /// The configuration space changed (virtio 1.2, 2.5).
    fn signal_config(&self);
    /// The device can't go on until the driver resets it: DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2).
    fn signal_needs_reset(&self);
}

/// A queue that the driver has set up, with the descriptor that is written when the driver kicks it.
pub struct ActiveQueue {
    /// Its index in the device.
    pub index: u16,
    /// Rings and state. One that the driver has not made ready is never looked at. The device itself switches
    /// VIRTIO_F_EVENT_IDX on, from [`Activation::features`].
    pub queue: Queue,
    /// Written by KVM (ioeventfd) on the driver's notification; nobody needs to read it.
    pub kick: EventFd,
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// All of guest memory.
    pub memory: Arc<Memory>,
    /// The queues, in order; exactly as many as [`VirtioDevice::queue_sizes`] has.
    pub queues: Vec<ActiveQueue>,
    /// The way to the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Features that the driver accepted: a subset of [`VirtioDevice::features`].
    pub features: u64,
}

/// Why a device could not be made, activated or stopped.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device}: {reason}")]
pub struct DeviceError {
    /// Which device.
    pub device: &'static str,
    /// What failed and why.
    pub reason: String,
}

/// What every device needs of its surroundings.
#[derive(Clone)]
pub struct Env {
    /// Closes the jail on the device's worker thread.
    pub confinement: Confinement,
    /// Where a worker's failure or end is told; called on the worker's thread, which it must not block.
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
}

/// What a device's worker tells the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The device could not go on and asked its driver for a reset; the VM goes on. At most
    /// [`worker::MAX_REPORTS`] of these come from one device.
    Stopped {
        /// Which device.
        device: &'static str,
        /// Why.
        reason: String,
    },
    /// The worker's thread panicked and is gone: the VM can't go on.
    Died {
        /// Which device.
        device: &'static str,
        /// What it said.
        reason: String,
    },
}

/// A virtio device as its transport sees it. Its methods are called on vCPU threads: they take locks, send on
/// channels and write an eventfd (futex, write, and what the allocator needs), and make no other system call.
pub trait VirtioDevice: Send {
    /// A short name for messages, such as `"vsock"`.
    fn name(&self) -> &'static str;
    /// Device ID (virtio 1.2, 5).
    fn device_type(&self) -> u32;
    /// Largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Features offered (virtio 1.2, 6), VIRTIO_F_VERSION_1 included.
    fn features(&self) -> u64;
    /// Reads device configuration at `offset`; bytes beyond its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Starts the data path. A queue that turns out to be malformed later ends in
    /// [`Interrupt::signal_needs_reset`].
    ///
    /// # Errors
    /// Where the worker can't take the queues; the device is then to be marked as needing reset.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// Stops the data path and forgets the queues; the device can then be activated anew. Returns once no
    /// thread touches guest memory for this device any more. Harmless on a device that is not active.
    ///
    /// # Errors
    /// Where the worker does not answer; queues and memory must then be taken for in use.
    fn reset(&mut self) -> Result<(), DeviceError>;
}

/// Fills `data` from configuration space `config` at `offset`, with zeros beyond its end.
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
