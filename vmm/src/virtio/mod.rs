//! Virtio devices. A device knows its queues, guest memory and one interrupt per queue, never its transport
//! (`crate::transport`), so that a second transport changes no device.
//!
//! A [`Device`] is owned by its transport, which handles the driver's register accesses on a vCPU thread. On
//! DRIVER_OK the transport calls [`Device::activate`]; from then on the queues belong to a [`worker`] thread,
//! which waits for the queues' kick eventfds and raises interrupts through [`Interrupt`]. No vCPU thread ever
//! accesses a queue.
//!
//! # A device, annotated
//!
//! A device is a [`Spec`] and a [`worker::DataPath`]. Everything else is the same for all devices: registers,
//! interrupts, the thread, its jail, reset and pause.
//!
//! ```no_run
//! # use nacre_vmm::virtio::worker::{ActiveDevice, DataPath, Fault, Notify};
//! # use nacre_vmm::virtio::{Device, DeviceError, Env, Spec};
//! # use nacre_vmm::jail::calls::rng;
//! /// Creates the device and spawns its worker. Called from the list in `machine/virtio_devices.rs`.
//! pub fn spawn(env: &Env) -> Result<Device, DeviceError> {
//!     let spec = Spec {
//!         name: "zero",            // in messages, and of the worker's thread
//!         device_type: 4,          // which driver the guest binds (virtio 1.2, 5)
//!         queue_sizes: vec![16],   // one queue of 16 descriptors
//!         features: 0,             // of this type of device; VERSION_1 and the rings' are added
//!         config: vec![0; 8],      // the configuration space (virtio 1.2, 2.5)
//!         config_writable: 4..8,   // what the driver may write of it
//!         profile: &rng::PROFILE,  // what the worker keeps in the jail; a file in jail/calls/
//!     };
//!     // The closure runs on the worker's thread before that is confined: it may still open files.
//!     Device::spawn(spec, env, || Ok(ZeroDataPath))
//! }
//!
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
//!
//!     // The driver wrote to bytes 4 to 8 of the configuration space. `update` is the device's side: it
//!     // changes bytes and raises a configuration change interrupt.
//!     fn on_config_write(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
//!         let mut wanted = [0; 4];
//!         active.config.read(4, &mut wanted);
//!         let _ = active.config.update(0, &wanted);
//!         Ok(())
//!     }
//! }
//! ```
//!
//! [`rng`] is the shortest complete example. docs/howto.md has the steps, tests included.
//!
//! Everything here reads what a guest wrote and must not panic on it, which the lints below enforce.
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

pub mod balloon;
pub mod blk;
mod config_space;
mod device;
pub mod fs;
pub mod mem;
pub mod net;
pub mod rings;
pub mod rng;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;
mod vectors;
pub mod vsock;
pub mod worker;

use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use self::worker::Fault;
use crate::jail::Confinement;
use crate::memory::Memory;
use crate::memory::ranges::Range;
pub(crate) use config_space::copy_padded;
pub use config_space::{ConfigSpace, NotWritable};
pub use device::{Device, DeviceError, Session, Spec};

/// The bit of feature number `number`, which is at most 63.
const fn feature(number: u32) -> u64 {
    1_u64.wrapping_shl(number)
}

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
    /// The queues, in order; exactly as many as [`Device::queue_sizes`] has.
    pub queues: Vec<ActiveQueue>,
    /// Notifies the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Features that the driver accepted: a subset of [`Device::features`].
    pub features: u64,
    /// The driver has activated the device in an earlier life of the VM, before a snapshot: the worker looks
    /// at all queues, since the eventfds of kicks are new.
    pub is_restored: bool,
}

/// What every device gets from the VM that it belongs to.
#[derive(Clone)]
pub struct Env {
    /// Confines the device's worker thread.
    pub confinement: Confinement,
    /// Receives a worker's failures. Called on the worker's thread; must not block.
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
    /// Where memory may be plugged in.
    pub hotplug: Range,
}

/// A failure that a device's worker reports to the VM.
#[derive(Debug)]
pub enum Report {
    /// The device stopped and set DEVICE_NEEDS_RESET; the VM continues. One device reports this at most
    /// [`worker::MAX_REPORTS`] times.
    Stopped {
        /// The device's [`Spec::name`].
        device: &'static str,
        /// Why.
        fault: Fault,
    },
    /// The worker's thread has exited: the VM must stop.
    Died {
        /// The device's [`Spec::name`].
        device: &'static str,
        /// Why.
        death: WorkerDeath,
    },
}

/// Why a worker's thread has exited by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerDeath {
    /// It panicked with this message.
    #[error("{0}")]
    Panic(String),
    /// It can't wait for events.
    #[error("epoll_wait: {0}")]
    Epoll(#[source] std::io::Error),
}
