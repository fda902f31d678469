//! The registers of virtio-mmio (virtio 1.2, 4.2.2): offsets into types, nothing else.

use super::queue::Ring;

/// Where the device's own configuration starts.
pub const CONFIG: u64 = 0x100;

/// A register that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// "virt".
    Magic,
    /// 2.
    Version,
    /// What kind of device.
    DeviceType,
    /// Who made it.
    Vendor,
    /// The selected half of the features offered.
    DeviceFeatures,
    /// The selected queue's largest size; 0: no such queue.
    QueueSizeMax,
    /// Whether the selected queue is in use.
    QueueReady,
    /// Why the interrupt was raised.
    InterruptStatus,
    /// How far driver and device are.
    Status,
    /// Length and place of the selected shared memory region.
    SharedMemory,
    /// Changes with the device's configuration.
    ConfigGeneration,
}

/// A register that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Which half of the features [`Read::DeviceFeatures`] shows.
    DeviceFeaturesSelect,
    /// Features accepted, the selected half.
    DriverFeatures,
    /// Which half [`Write::DriverFeatures`] sets.
    DriverFeaturesSelect,
    /// Which queue the queue registers mean.
    QueueSelect,
    /// The selected queue's size.
    QueueSize,
    /// Whether the selected queue is in use.
    QueueReady,
    /// There are buffers in the queue of this index.
    QueueNotify,
    /// These reasons of an interrupt were seen.
    InterruptAck,
    /// How far the driver is.
    Status,
    /// Which shared memory region [`Read::SharedMemory`] means; there is none.
    SharedMemorySelect,
    /// Half of the address of a ring of the selected queue.
    QueueAddress(Ring, Part),
}

/// Half of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Bits 31:0.
    Low,
    /// Bits 63:32.
    High,
}

/// The register that a 32-bit read at `offset` meets.
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

/// The register that a 32-bit write at `offset` meets.
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
        0x80 => Write::QueueAddress(Ring::Descriptors, Part::Low),
        0x84 => Write::QueueAddress(Ring::Descriptors, Part::High),
        0x90 => Write::QueueAddress(Ring::Available, Part::Low),
        0x94 => Write::QueueAddress(Ring::Available, Part::High),
        0xa0 => Write::QueueAddress(Ring::Used, Part::Low),
        0xa4 => Write::QueueAddress(Ring::Used, Part::High),
        0xac => Write::SharedMemorySelect,
        _ => return None,
    })
}
