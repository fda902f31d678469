//! The devices that every VM has besides the virtio devices, at the ports and addresses of [`layout`]. Called
//! by the machine's steps; [`super::virtio_devices`] adds the PCI bus.

use super::Error;
use crate::bus::Bus;
use crate::devices::cmos::{self, NoCmos};
use crate::devices::console::Console;
use crate::devices::io_apic::{self, IoApic};
use crate::devices::pci::{self, EmptyPorts};
use crate::devices::power::{self, PowerRegisters};
use crate::devices::pvpanic::PvPanic;
use crate::devices::serial::{self, SerialInput, SerialInterrupt, SerialPort, SerialState};
use crate::kvm::vcpu::{IoBuses, OtherExits};
use crate::layout;
use crate::vm_exit::VmExit;

/// What the devices are created from.
pub(super) struct Legacy<'a> {
    pub(super) io_apic: IoApic,
    pub(super) pci_ports: EmptyPorts,
    pub(super) vm_exit: &'a VmExit,
    pub(super) console: &'a Console,
    /// What the serial port contains, in a restored VM.
    pub(super) serial: Option<&'a SerialState>,
}

impl Legacy<'_> {
    /// Creates both buses with these devices. Returns the serial port's receiving side with them.
    pub(super) fn create(self) -> Result<(IoBuses, SerialInput), Error> {
        let interrupt = SerialInterrupt(self.io_apic.pin(layout::SERIAL_GSI));
        let console = self.console.clone();
        let (serial, serial_input) = match self.serial {
            None => serial::create(interrupt, console),
            Some(saved) => {
                serial::restore(saved, interrupt, console).ok_or(Error::OtherDevice("serial port"))?
            }
        };
        Ok((self.buses(serial)?, serial_input))
    }

    fn buses(self, serial: SerialPort) -> Result<IoBuses, Error> {
        let vm_exit = self.vm_exit;
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
            Box::new(self.pci_ports),
        )?;
        ports.insert(
            "cmos",
            u64::from(layout::CMOS_PORT),
            u64::from(cmos::PORTS),
            Box::new(NoCmos),
        )?;
        ports.insert(
            "power",
            u64::from(layout::POWER_PORT),
            u64::from(power::PORTS),
            Box::new(PowerRegisters::new(vm_exit.clone())),
        )?;
        let mut mmio = Bus::new("mmio");
        mmio.insert(
            "io apic",
            u64::from(layout::IO_APIC),
            io_apic::BYTES,
            Box::new(self.io_apic),
        )?;
        Ok(IoBuses {
            ports,
            mmio,
            other_exits: OtherExits::default(),
        })
    }
}
