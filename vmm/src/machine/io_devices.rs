//! The port I/O devices that every VM has, at the ports of [`layout`]. Called by the machine's steps; virtio
//! devices are added to the MMIO bus by [`super::virtio_devices`].

use super::vm_exit::VmExit;
use super::{Error, layout};
use crate::bus::Bus;
use crate::devices::console::Console;
use crate::devices::pci::{self, EmptyPorts};
use crate::devices::power::{self, PowerRegisters};
use crate::devices::pvpanic::PvPanic;
use crate::devices::serial::{self, SerialInput, SerialInterrupt};
use crate::kvm::Vm;
use crate::kvm::vcpu::{IoBuses, OtherExits};

/// Creates both buses: the port bus with its devices, and the empty MMIO bus. Returns the serial port's
/// receiving side with them.
pub(super) fn create(vm: &Vm, vm_exit: &VmExit, console: &Console) -> Result<(IoBuses, SerialInput), Error> {
    let interrupt = SerialInterrupt(vm.irqfd(layout::SERIAL_GSI)?);
    let (serial, serial_input) = serial::create(interrupt, console.clone());
    let mut ports = Bus::new("port");
    ports.insert(
        "serial",
        u64::from(layout::SERIAL_PORT),
        u64::from(serial::PORTS),
        Box::new(serial),
    )?;
    ports.insert(
        "pvpanic",
        u64::from(layout::PVPANIC_PORT),
        1,
        Box::new(PvPanic::new(vm_exit.clone())),
    )?;
    ports.insert(
        "pci",
        u64::from(layout::PCI_PORT),
        u64::from(pci::PORTS),
        Box::new(EmptyPorts::default()),
    )?;
    ports.insert(
        "power",
        u64::from(layout::POWER_PORT),
        u64::from(power::PORTS),
        Box::new(PowerRegisters::new(vm_exit.clone())),
    )?;
    let buses = IoBuses {
        ports,
        mmio: Bus::new("mmio"),
        other_exits: OtherExits::default(),
    };
    Ok((buses, serial_input))
}
