//! Virtio devices. A device knows its queues, guest memory and one interrupt per queue, never its transport
//! (`crate::transport`), so that a second transport changes no device.
//!
//! A device is owned by its transport, which talks to the guest's driver on a vCPU thread. On DRIVER_OK the
//! transport calls [`VirtioDevice::activate`]; from then on the data path belongs to a worker thread that waits on
//! the queues' kick descriptors and raises interrupts through [`Interrupt`]. No vCPU thread ever touches a queue.

use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory, with the dirty bitmap that snapshots and virtiofsd's library want.
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

/// A queue that the driver has made ready, with the descriptor that is written when the driver kicks it.
pub struct ActiveQueue {
    /// Its index in the device.
    pub index: u16,
    /// Rings and state.
    pub queue: Queue,
    /// Written by KVM (ioeventfd) on the driver's notification.
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

/// Why a device could not be activated or stopped.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device}: {reason}")]
pub struct DeviceError {
    /// Which device.
    pub device: &'static str,
    /// What failed and why.
    pub reason: String,
}

/// A virtio device as its transport sees it.
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
    /// Starts the data path.
    ///
    /// # Errors
    /// Where the worker can't take the queues; the device is then marked as needing reset.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// Stops the data path and forgets the queues; the device can then be activated anew. Returns once no
    /// thread touches guest memory for this device any more.
    ///
    /// # Errors
    /// Where the worker does not answer.
    fn reset(&mut self) -> Result<(), DeviceError>;
}
