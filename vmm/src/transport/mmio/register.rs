//! The registers of virtio-mmio (virtio 1.2, 4.2.2): decodes offsets into types. Pure; called by the
//! transport.

pub use crate::transport::queue::Half;
use crate::virtio::rings::Ring;

/// Offset of the device-specific configuration space.
pub const CONFIG: u64 = 0x100;

/// A readable register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// MagicValue: "virt".
    Magic,
    /// Version: 2.
    Version,
    /// DeviceID: the type of device (virtio 1.2, 5).
    DeviceType,
    /// VendorID.
    Vendor,
    /// DeviceFeatures: the selected half of the offered features.
    DeviceFeatures,
    /// QueueSizeMax: the largest size of the selected queue; 0 if there is no such queue.
    QueueSizeMax,
    /// QueueReady: 1 if the selected queue is ready, otherwise 0.
    QueueReady,
    /// InterruptStatus: the pending reasons of the interrupt.
    InterruptStatus,
    /// Status: the device status (virtio 1.2, 2.1).
    Status,
    /// SHMLen and SHMBase: length and address of the selected shared memory region.
    SharedMemory,
    /// ConfigGeneration: changes whenever the configuration space does.
    ConfigGeneration,
}

/// A writable register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// DeviceFeaturesSel: selects the half that [`Read::DeviceFeatures`] returns.
    DeviceFeaturesSelect,
    /// DriverFeatures: the selected half of the features that the driver accepts.
    DriverFeatures,
    /// DriverFeaturesSel: selects the half that [`Write::DriverFeatures`] sets.
    DriverFeaturesSelect,
    /// QueueSel: selects the queue of the other queue registers.
    QueueSelect,
    /// QueueSize: number of entries of the selected queue.
    QueueSize,
    /// QueueReady: 1 makes the selected queue ready.
    QueueReady,
    /// QueueNotify: the queue with this index has new buffers.
    QueueNotify,
    /// InterruptACK: the driver has handled these reasons.
    InterruptAck,
    /// Status: the next device status; 0 resets the device.
    Status,
    /// SHMSel: selects the region of [`Read::SharedMemory`]; no device has one.
    SharedMemorySelect,
    /// QueueDesc, QueueDriver, QueueDevice: half of a ring's address in the selected queue.
    QueueAddress(Ring, Half),
}

/// Decodes the offset of a 32-bit read; None if no readable register has it.
#[must_use]
pub fn read(offset: u64) -> Option<Read> {
    Some(match offset {
        0x00 => Read::Magic,
        0x04 => Read::Version,
        0x08 => Read::DeviceType,
        0x0c => Read::Vendor,
        0x10 => Read::DeviceFeatures,
        0x34 => Read::QueueSizeMax,
        0x44 => Read::QueueReady,
        0x60 => Read::InterruptStatus,
        0x70 => Read::Status,
        0xb0 | 0xb4 | 0xb8 | 0xbc => Read::SharedMemory,
        0xfc => Read::ConfigGeneration,
        _ => return None,
    })
}

/// Decodes the offset of a 32-bit write; None if no writable register has it.
#[must_use]
pub fn write(offset: u64) -> Option<Write> {
    Some(match offset {
        0x14 => Write::DeviceFeaturesSelect,
        0x20 => Write::DriverFeatures,
        0x24 => Write::DriverFeaturesSelect,
        0x30 => Write::QueueSelect,
        0x38 => Write::QueueSize,
        0x44 => Write::QueueReady,
        super::QUEUE_NOTIFY => Write::QueueNotify,
        super::INTERRUPT_ACK => Write::InterruptAck,
        0x70 => Write::Status,
        0x80 => Write::QueueAddress(Ring::Descriptors, Half::Low),
        0x84 => Write::QueueAddress(Ring::Descriptors, Half::High),
        0x90 => Write::QueueAddress(Ring::Available, Half::Low),
        0x94 => Write::QueueAddress(Ring::Available, Half::High),
        0xa0 => Write::QueueAddress(Ring::Used, Half::Low),
        0xa4 => Write::QueueAddress(Ring::Used, Half::High),
        0xac => Write::SharedMemorySelect,
        _ => return None,
    })
}
