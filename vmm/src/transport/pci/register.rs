//! The common configuration structure (virtio 1.2, 4.1.4.3): decodes writes into types, and encodes what the
//! structure reads as. Pure; called by the transport.

use crate::bus::Half;
use crate::virtio::rings::Ring;

/// Length of the structure, in bytes.
pub const COMMON_BYTES: u32 = 60;

/// A writable register with the written value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// device_feature_select: selects the half that device_feature reads as.
    DeviceFeatureSelect(u32),
    /// driver_feature_select: selects the half of the accepted features to read or write.
    DriverFeatureSelect(u32),
    /// driver_feature: the selected half of the features that the driver accepts.
    DriverFeature(u32),
    /// config_msix_vector: the vector for configuration changes.
    ConfigVector(u16),
    /// device_status: the next device status; 0 resets the device.
    DeviceStatus(u8),
    /// queue_select: selects the queue of the other queue registers.
    QueueSelect(u16),
    /// queue_size: number of entries of the selected queue.
    QueueSize(u16),
    /// queue_msix_vector: the vector for used buffers of the selected queue.
    QueueVector(u16),
    /// queue_enable: 1 makes the selected queue ready.
    QueueEnable(u16),
    /// queue_desc, queue_driver, queue_device: half of a ring's address in the selected queue.
    QueueAddress(Ring, Half, u32),
}

/// Decodes a write of `data` to `offset`; None if it is not a write of the whole register, or of half a
/// register of 64 bits (virtio 1.2, 4.1.3.1).
#[must_use]
pub fn decode_write(offset: u64, data: &[u8]) -> Option<Write> {
    match *data {
        [byte] => (offset == 20).then_some(Write::DeviceStatus(byte)),
        [b0, b1] => {
            let value = u16::from_le_bytes([b0, b1]);
            Some(match offset {
                16 => Write::ConfigVector(value),
                22 => Write::QueueSelect(value),
                24 => Write::QueueSize(value),
                26 => Write::QueueVector(value),
                28 => Write::QueueEnable(value),
                _ => return None,
            })
        }
        [b0, b1, b2, b3] => {
            let value = u32::from_le_bytes([b0, b1, b2, b3]);
            Some(match offset {
                0 => Write::DeviceFeatureSelect(value),
                8 => Write::DriverFeatureSelect(value),
                12 => Write::DriverFeature(value),
                32 => Write::QueueAddress(Ring::Descriptors, Half::Low, value),
                36 => Write::QueueAddress(Ring::Descriptors, Half::High, value),
                40 => Write::QueueAddress(Ring::Available, Half::Low, value),
                44 => Write::QueueAddress(Ring::Available, Half::High, value),
                48 => Write::QueueAddress(Ring::Used, Half::Low, value),
                52 => Write::QueueAddress(Ring::Used, Half::High, value),
                _ => return None,
            })
        }
        _ => None,
    }
}

/// The registers that the driver's writes decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverRegisters {
    /// device_feature_select.
    pub device_feature_select: u32,
    /// device_feature.
    pub device_feature: u32,
    /// driver_feature_select.
    pub driver_feature_select: u32,
    /// driver_feature.
    pub driver_feature: u32,
    /// num_queues.
    pub queues: u16,
    /// device_status, without DEVICE_NEEDS_RESET.
    pub status: u8,
    /// queue_select.
    pub queue_select: u16,
    /// The selected queue; all zeros if it does not exist.
    pub queue: QueueRegisters,
}

/// The registers of the selected queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    /// queue_size.
    pub size: u16,
    /// queue_enable.
    pub enabled: bool,
    /// queue_desc, queue_driver, queue_device.
    pub rings: [u64; 3],
}

/// The registers that the device decides, or both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRegisters {
    /// config_msix_vector.
    pub config_vector: u16,
    /// queue_msix_vector of the selected queue.
    pub queue_vector: u16,
    /// config_generation.
    pub generation: u8,
    /// DEVICE_NEEDS_RESET or 0.
    pub needs_reset: u8,
}

/// What the structure reads as. queue_notify_off is the queue's index; queue_notify_data and queue_reset
/// belong to features that are not offered.
#[must_use]
pub fn encode(driver: &DriverRegisters, device: DeviceRegisters) -> [u8; COMMON_BYTES as usize] {
    let mut bytes = [0; COMMON_BYTES as usize];
    let exists = driver.queue_select < driver.queues;
    let [descriptors, available, used] = driver.queue.rings;
    let fields: [&[u8]; 16] = [
        &driver.device_feature_select.to_le_bytes(),
        &driver.device_feature.to_le_bytes(),
        &driver.driver_feature_select.to_le_bytes(),
        &driver.driver_feature.to_le_bytes(),
        &device.config_vector.to_le_bytes(),
        &driver.queues.to_le_bytes(),
        &[driver.status | device.needs_reset, device.generation],
        &driver.queue_select.to_le_bytes(),
        &driver.queue.size.to_le_bytes(),
        &device.queue_vector.to_le_bytes(),
        &u16::from(driver.queue.enabled).to_le_bytes(),
        &(if exists { driver.queue_select } else { 0 }).to_le_bytes(),
        &descriptors.to_le_bytes(),
        &available.to_le_bytes(),
        &used.to_le_bytes(),
        &[0; 4],
    ];
    for (byte, value) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
        *byte = *value;
    }
    bytes
}
