//! The state of a function and its device in a snapshot: what the driver has set, and how far the rings were
//! served. Read while the device is paused, and set before the guest runs.

use serde::{Deserialize, Serialize};

use super::function::FunctionState;
use super::{PciTransport, Selected};
use crate::transport::status::DRIVER_OK;
use crate::virtio::DeviceError;

/// The state of a function and its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device ID (virtio 1.2, 5).
    pub(super) device_type: u32,
    status: u8,
    selected: Selected,
    driver_features: u64,
    pub(super) queues: Vec<SavedQueue>,
    /// The configuration space of the device, and its generation.
    pub(super) config: (Vec<u8>, u32),
    pub(super) function: FunctionState,
    /// By queue. Empty unless the device is active.
    pub(super) positions: Vec<Position>,
}

/// What the driver has set for a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// The number of entries.
    pub size: u16,
    /// The addresses of descriptor table, available and used ring.
    pub addresses: [u64; 3],
    /// The driver has enabled it.
    pub ready: bool,
}

/// How far the rings of a queue were served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

/// Why a function does not take a state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is that of another device, or of one with other queues or registers.
    #[error("virtio {device}: the snapshot has another device in its place, or another version of it")]
    OtherDevice {
        /// The name of the device.
        device: &'static str,
    },
    /// The device does not accept the queues.
    #[error("virtio {device}: {reason}")]
    Queues {
        /// The name of the device.
        device: &'static str,
        /// Why.
        reason: String,
    },
    /// The device's worker does not answer.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl PciTransport {
    /// The state of the function and its device, which this pauses.
    ///
    /// # Errors
    /// [`DeviceError`] if the device can't be paused.
    pub fn save(&mut self) -> Result<TransportState, DeviceError> {
        let served = self.device.pause()?;
        Ok(TransportState {
            device_type: self.device.device_type(),
            status: self.status,
            selected: self.selected,
            driver_features: self.driver_features,
            queues: self.queues.iter().map(|queue| queue.save()).collect(),
            config: self.device.config().save(),
            function: self.function.save(),
            positions: served
                .iter()
                .map(|queue| Position {
                    next_avail: queue.next_avail,
                    next_used: queue.next_used,
                })
                .collect(),
        })
    }

    /// Sets the state of a function that no driver has used, and of its device, which this pauses: it serves
    /// the queues once it is resumed.
    ///
    /// # Errors
    /// [`Error`]; the function must then not be used.
    pub fn restore(&mut self, saved: &TransportState) -> Result<(), Error> {
        let device = self.device.name();
        let other = || Error::OtherDevice { device };
        let has_queues = saved.queues.len() == self.queues.len();
        if !has_queues || saved.device_type != self.device.device_type() {
            return Err(other());
        }
        self.device.pause()?;
        let (config, generation) = &saved.config;
        let fits =
            self.device.config().restore(config, *generation) && self.function.restore(&saved.function);
        if !fits {
            return Err(other());
        }
        self.status = saved.status;
        self.selected = saved.selected;
        self.driver_features = saved.driver_features;
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            queue.restore(saved);
        }
        self.function.show(self.registers());
        // A device that is active without queues has failed, and waits for its reset.
        if self.status & DRIVER_OK != 0 && !saved.positions.is_empty() {
            self.activate(Some(&saved.positions))
                .map_err(|reason| Error::Queues { device, reason })?;
        }
        Ok(())
    }
}
