//! A machine without its vCPUs: what [`super::build`] and [`super::restore`] have in common.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::pause::RunState;
use super::plug::Plug;
use super::vcpus::{self, Vcpus};
use super::virtio_devices::{self, DeviceBuilder, PciSlots};
use super::{Error, Failure, Machine, io_devices};
use crate::config::Config;
use crate::devices::console::Console;
use crate::devices::generation_id::GenerationId;
use crate::devices::io_apic::IoApic;
use crate::devices::pci::EmptyPorts;
use crate::devices::serial::{SerialInput, SerialState};
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::kvm::vcpu::IoBuses;
use crate::layout;
use crate::memory::Memory;
use crate::snapshot::state::Size;
use crate::virtio::Device;
use crate::virtio::mem::Plugger;
use crate::vm_exit::VmExit;

/// What the devices are made from.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) console_ring: Option<File>,
    pub(super) devices: Vec<DeviceBuilder>,
    pub(super) confinement: &'a Confinement,
    /// What the serial port contains, in a restored VM.
    pub(super) serial: Option<&'a SerialState>,
}

/// A machine without its vCPUs.
pub(super) struct Assembly {
    pub(super) vm: Vm,
    pub(super) memory: Arc<Memory>,
    pub(super) io_apic: IoApic,
    pub(super) pci_ports: EmptyPorts,
    pub(super) generation_id: GenerationId,
    pub(super) devices: PciSlots,
    vm_exit: VmExit,
    memory_taken: Arc<EventFd>,
    console: Console,
    serial_input: SerialInput,
    buses: Arc<IoBuses>,
    plugger: Option<Plugger>,
}

/// Creates the VM with `memory`.
pub(super) fn create_vm(kvm: OwnedFd, memory: &Memory) -> Result<Vm, Error> {
    let vm = Vm::new(kvm)?;
    vm.set_memory(memory)?;
    Ok(vm)
}

impl Assembly {
    /// Creates all devices.
    pub(super) fn create(vm: Vm, memory: Arc<Memory>, parts: Parts<'_>) -> Result<Self, Failure> {
        let config = parts.config;
        let vm_exit = VmExit::new().map_err(Failure::at("create devices"))?;
        let memory_taken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::EventFd);
        let memory_taken = Arc::new(memory_taken.map_err(Failure::at("create devices"))?);
        let console = Console::new(parts.console_ring, config.console);
        let io_apic = IoApic::new(layout::GSIS, vm.message_sender());
        let pci_ports = EmptyPorts::default();
        let generation_id = GenerationId::new(Arc::clone(&memory), io_apic.pin(layout::GENERATION_ID_GSI));
        let legacy = io_devices::Legacy {
            io_apic: io_apic.clone(),
            pci_ports: pci_ports.clone(),
            vm_exit: &vm_exit,
            console: &console,
            serial: parts.serial,
        };
        let (mut buses, serial_input) = legacy.create().map_err(Failure::at("create devices"))?;
        let env = virtio_devices::env(parts.confinement, &vm_exit, config.memory_bytes());
        let devices =
            virtio_devices::create(parts.devices, &env).map_err(Failure::at("create virtio devices"))?;
        let plugger = devices.iter().find_map(Device::plugger).cloned();
        let devices = PciSlots::fill(devices, env, &vm, &memory, &mut buses)
            .map_err(Failure::at("attach virtio devices"))?;
        Ok(Self {
            vm,
            memory,
            io_apic,
            pci_ports,
            generation_id,
            devices,
            vm_exit,
            memory_taken,
            console,
            serial_input,
            buses: Arc::new(buses),
            plugger,
        })
    }

    /// Creates the vCPUs, but vCPU 0 if it is `first`.
    pub(super) fn spawn_vcpus(
        &self,
        config: &Config,
        start: vcpus::Start<'_>,
        first: Option<VcpuFd>,
        confinement: &Confinement,
    ) -> Result<Vcpus, Failure> {
        let plan = vcpus::Plan {
            count: config.max_vcpus,
            start,
            first,
            can_be_saved: config.can_be_saved,
            vm: &self.vm,
            buses: &self.buses,
            vm_exit: &self.vm_exit,
        };
        plan.spawn(confinement).map_err(Failure::at("create vCPUs"))
    }

    /// The machine with `vcpus`, which has the size `size`.
    pub(super) fn complete(self, vcpus: Vcpus, state: RunState, size: Size) -> Machine {
        let memory_taken = Arc::clone(&self.memory_taken);
        Machine {
            vm_exit: self.vm_exit,
            console: self.console,
            serial_input: self.serial_input,
            io_apic: self.io_apic,
            pci_ports: self.pci_ports,
            generation_id: self.generation_id,
            buses: ManuallyDrop::new(self.buses),
            vcpus,
            devices: self.devices,
            plug: self.plugger.map(|plugger| Plug::new(plugger, memory_taken)),
            has_common_devices: false,
            state,
            size,
            vm: self.vm,
            memory: self.memory,
            memory_taken: self.memory_taken,
        }
    }
}
