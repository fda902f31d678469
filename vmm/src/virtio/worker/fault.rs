//! Why a data path stops until its driver resets the device. Made by the worker and by data paths; ends in
//! [`crate::virtio::Report::Stopped`].

use std::error::Error;
use std::io;

use crate::virtio::rings::BadRings;

/// The device can't continue: its rings are broken, or an operation of the host failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The driver has not made this queue ready (virtio 1.2, 4.2.2).
    #[error("queue {0} is not ready")]
    NotReady(u16),
    /// The size or the rings of a queue are invalid (virtio 1.2, 2.7).
    #[error("queue {index}: {source}")]
    InvalidQueue {
        /// The index of the queue.
        index: u16,
        /// What is wrong.
        source: BadRings,
    },
    /// An index or address in a ring is out of bounds (virtio 1.2, 2.7).
    #[error("{ring} of queue {index}: {source}")]
    Ring {
        /// The index of the queue.
        index: u16,
        /// "available ring", "used ring" or both.
        ring: &'static str,
        /// What is wrong.
        source: virtio_queue::Error,
    },
    /// The driver has made no buffer available in this queue, in which it always has some.
    #[error("queue {0} has no buffer")]
    NoBuffer(u16),
    /// A system call failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was attempted, such as "watch the listener".
        operation: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// The transport passed queues to a device that has queues; the device keeps the ones it had.
    #[error("activated twice without a reset")]
    AlreadyActive,
    /// Guest memory can't be mapped a second time for a library.
    #[error("guest memory: {0}")]
    Memory(#[source] Box<dyn Error + Send + Sync>),
}

impl Fault {
    /// For `map_err` on a system call of `operation`.
    pub fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}
