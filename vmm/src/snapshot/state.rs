//! The state of a machine in a snapshot, without its memory. Made and taken by the machine
//! (`machine/saved.rs`), encoded by [`super::format`].

use serde::{Deserialize, Serialize};

use super::host::Host;
use super::vcpu::VcpuState;
use crate::devices::io_apic::IoApicState;
use crate::devices::serial::SerialState;
use crate::memory::page_range::PageRange;
use crate::transport::pci::saved::TransportState;

/// The state of a machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// How large it is.
    pub size: Size,
    /// What its kernel has found.
    pub host: Host,
    /// The guest's kvm-clock in ns.
    pub clock_ns: u64,
    /// By number.
    pub vcpus: Vec<VcpuState>,
    /// The I/O APIC.
    pub io_apic: IoApicState,
    /// The serial port.
    pub serial: SerialState,
    /// The address in the PCI bus's ports.
    pub pci_address: [u8; 4],
    /// The virtio devices.
    pub devices: Vec<DeviceState>,
    /// Pages of guest memory that a guest writes as soon as it continues, in ascending order. A restored VM has
    /// them copied before the guest runs.
    pub early_writes: Vec<PageRange>,
    /// The pages that the file of guest memory has, in ascending order, with small holes between them. All others
    /// are zeros, and no page of the file.
    pub data: Vec<PageRange>,
}

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// vCPUs that are online at boot.
    pub vcpus: u8,
    /// vCPUs that are present.
    pub max_vcpus: u8,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its slot on the PCI bus.
    pub slot: u8,
    /// Its short name.
    pub name: String,
    /// Its registers, queues and configuration.
    pub transport: TransportState,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::devices::console::Console;
    use crate::devices::io_apic::IoApic;
    use crate::devices::serial::{self, SerialInterrupt};
    use crate::snapshot::host::tests::host;

    /// A state without vCPUs, which only KVM makes, and without devices.
    pub(crate) fn state() -> MachineState {
        let io_apic = IoApic::new(4..6, std::sync::Arc::new(|_| Ok(())));
        let console = Console::new(None, crate::config::ConsoleOutput::RingOnly);
        let (_, serial) = serial::create(SerialInterrupt(io_apic.pin(4)), console);
        MachineState {
            size: Size {
                memory_mib: 64,
                vcpus: 1,
                max_vcpus: 2,
            },
            host: host(),
            clock_ns: 123_456_789,
            vcpus: Vec::new(),
            io_apic: io_apic.save(),
            serial: serial.save(),
            pci_address: [8, 0, 0, 0x80],
            devices: Vec::new(),
            early_writes: vec![PageRange { first: 3, count: 2 }],
            data: vec![PageRange { first: 0, count: 8 }],
        }
    }
}
