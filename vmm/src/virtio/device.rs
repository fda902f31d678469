//! A virtio device as its transport uses it. Made from a [`Spec`] by each device's module; called on vCPU
//! threads, whose seccomp filter is narrow: its methods take locks, allocate, send on channels, wait and
//! write an eventfd, and make no other system call. Never accesses a queue.
//!
//! The device's own code is its [`DataPath`], which only the worker's thread has. So [`Device`] is one type
//! for all devices, and needs neither a parameter nor a trait object in the transport, the buses or the
//! machine.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::mem::Plugger;
use super::worker::{DataPath, MemorySender, Worker};
use super::{Activation, ConfigSpace, Env};
use crate::jail::Profile;

/// What every device offers: it complies with virtio 1.0 and later, and the worker handles indirect
/// descriptors and event indices (virtio 1.2, 6).
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What a device is, apart from its [`DataPath`].
#[derive(Debug, Clone)]
pub struct Spec {
    /// A short name for messages and for the worker's thread, such as "vsock".
    pub name: &'static str,
    /// The device ID (virtio 1.2, 5).
    pub device_type: u32,
    /// The maximum size of each queue in descriptors, a power of two; one entry per queue.
    pub queue_sizes: Vec<u16>,
    /// The features of this type of device that are offered. VERSION_1, INDIRECT_DESC and EVENT_IDX are
    /// offered in any case.
    pub features: u64,
    /// The initial configuration space.
    pub config: Vec<u8>,
    /// The bytes of the configuration space that the driver may write.
    pub config_writable: Range<usize>,
    /// What the worker's thread keeps in the jail.
    pub profile: &'static Profile,
}

/// Why a device could not be created, activated, reset or paused.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device}: {operation}: {source}")]
pub struct DeviceError {
    /// The device's [`Spec::name`].
    pub device: &'static str,
    /// The operation that failed, such as "create an epoll set".
    pub operation: &'static str,
    /// Why it failed.
    pub source: Box<dyn Error + Send + Sync>,
}

impl DeviceError {
    /// For `map_err`: `operation` of `device` failed.
    pub fn at<E: Into<Box<dyn Error + Send + Sync>>>(
        device: &'static str,
        operation: &'static str,
    ) -> impl Fn(E) -> Self {
        move |source| Self {
            device,
            operation,
            source: source.into(),
        }
    }
}

/// A virtio device with its worker. Dropping it ends the worker's thread and joins it.
pub struct Device {
    device_type: u32,
    queue_sizes: Vec<u16>,
    features: u64,
    plugger: Option<Plugger>,
    session: Option<Session>,
    worker: Worker,
}

/// Whether the driver has begun a session with a device, such as a mount, of which neither the queues nor guest
/// memory have the device's part. The data path and the device share it.
#[derive(Debug, Clone, Default)]
pub struct Session(Arc<AtomicBool>);

impl Session {
    /// The driver has begun one.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Device {
    /// Creates the device that `spec` describes and spawns its worker. `build` constructs the data path on
    /// the worker's thread before that is confined, so it may open what the data path needs.
    ///
    /// # Errors
    /// [`DeviceError`] if the thread can't be spawned or confined, or `build` fails.
    pub fn spawn<D: DataPath>(
        spec: Spec,
        env: &Env,
        build: impl FnOnce() -> Result<D, Box<dyn Error + Send + Sync>> + Send + 'static,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            worker: Worker::spawn(&spec, env, build)?,
            device_type: spec.device_type,
            queue_sizes: spec.queue_sizes,
            features: spec.features | COMMON_FEATURES,
            plugger: None,
            session: None,
        })
    }

    /// The device, which plugs memory by `plugger`.
    pub(super) fn with_plugger(self, plugger: Plugger) -> Self {
        Self {
            plugger: Some(plugger),
            ..self
        }
    }

    /// The device, whose data path reports a session by `session`.
    pub(crate) fn with_session(self, session: Session) -> Self {
        Self {
            session: Some(session),
            ..self
        }
    }

    /// Whether the driver has begun a session, which a snapshot would lose.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.session.as_ref().is_some_and(Session::has_begun)
    }

    /// Plugs memory, if this is virtio-mem.
    #[must_use]
    pub fn plugger(&self) -> Option<&Plugger> {
        self.plugger.as_ref()
    }

    /// See [`Spec::name`].
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.worker.name()
    }

    /// See [`Spec::device_type`].
    #[must_use]
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// See [`Spec::queue_sizes`].
    #[must_use]
    pub fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// All features offered (virtio 1.2, 6).
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The configuration space.
    #[must_use]
    pub fn config(&self) -> &Arc<ConfigSpace> {
        self.worker.config()
    }

    /// Passes the queues to the worker. If a queue turns out to be malformed, the worker calls
    /// [`super::Interrupt::signal_needs_reset`]. The queues of a paused device are served once it is resumed.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited; the transport must then set DEVICE_NEEDS_RESET.
    pub fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.config()
            .set_interrupt(Some(Arc::clone(&activation.interrupt)));
        self.worker.activate(activation)
    }

    /// Stops the data path and drops the queues; the device can then be activated again. When it returns, no
    /// thread accesses guest memory or interrupts the driver on behalf of this device. Has no effect on a
    /// device that is not active; a paused one stays paused.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited or does not answer within 10 s; it may then still
    /// use the queues and guest memory.
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        self.config().set_interrupt(None);
        self.worker.reset()
    }

    /// Stops serving the queues and returns their state, in the order of their indices; no queues if the
    /// device is not active. When it returns, each request that the device has taken from a queue is
    /// finished, and until [`Device::resume`] the worker accesses no guest memory and none of its
    /// descriptors. Kicks, data from the host and writes to the configuration space that arrive meanwhile are
    /// handled after that. Pausing a paused device returns the same state again.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited or does not answer within 10 s; in the latter case
    /// it pauses later, unless the device is resumed.
    pub fn pause(&mut self) -> Result<Vec<QueueState>, DeviceError> {
        self.worker.pause()
    }

    /// See [`Worker::settle`].
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn settle(&self) {
        self.worker.settle();
    }

    /// Continues after [`Device::pause`]. Has no effect on a device that is not paused.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker's thread has exited.
    pub fn resume(&mut self) -> Result<(), DeviceError> {
        self.worker.resume()
    }

    /// Gives the device guest memory that has grown.
    #[must_use]
    pub fn memory_sender(&self) -> MemorySender {
        self.worker.memory_sender()
    }

    /// Changes how long reset and pause wait, so that a test need not.
    #[cfg(test)]
    pub(crate) fn set_timeout(&mut self, timeout: std::time::Duration) {
        self.worker.timeout = timeout;
    }
}
