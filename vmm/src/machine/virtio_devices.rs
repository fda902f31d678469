//! The virtio devices of a VM: creates each with its worker and puts it into a slot of the PCI bus, with
//! registers, interrupts and notifications. Called by the machine's steps, before any thread runs guest code.

use std::sync::{Arc, Mutex};

use super::memory::ranges::Ranges;
use super::pause::{Pausable, PauseError};
use super::vm_exit::VmExit;
use super::{Error, layout};
use crate::devices::pci::{self, ConfigWindow};
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::kvm::vcpu::IoBuses;
use crate::transport::pci::config_space::BAR_BYTES;
use crate::transport::pci::function::FunctionPages;
use crate::transport::pci::page::{PAGE_BYTES, RegisterPages};
use crate::transport::pci::{PciTransport, Placement, notify_offset};
use crate::virtio::{Device, DeviceError, Env, Memory, Report, balloon, rng};

/// Pages of BAR 0.
const BAR0_PAGES: usize = BAR_BYTES as usize / PAGE_BYTES;
/// Pages that the guest reads of each function: its configuration space and BAR 0.
const PAGES_PER_FUNCTION: usize = 1 + BAR0_PAGES;

/// Creates one device with its worker.
pub type DeviceBuilder = Box<dyn FnOnce(&Env) -> Result<Device, DeviceError>>;

/// Interrupt vectors of a device: one for changes of its configuration, one for all of its queues. A driver
/// would use one per queue if there were as many, but each costs 11 exits of a boot, and gains nothing while
/// one worker serves all queues.
const VECTORS: u16 = 2;

/// A device's `spawn`, if it needs nothing from the host.
type Spawn = fn(&Env) -> Result<Device, DeviceError>;

/// The devices that every VM has, because they need nothing from the host. The guest finds them after the
/// others.
const EVERY_VM: [Spawn; 2] = [rng::spawn, balloon::spawn];

/// Creates the devices with their workers, in the order of their slots: those of `builders`, then those
/// that every VM has.
pub(super) fn create(builders: Vec<DeviceBuilder>, env: &Env) -> Result<Vec<Device>, Error> {
    let configured = builders.into_iter().map(|build| build(env));
    let devices = configured.chain(EVERY_VM.into_iter().map(|spawn| spawn(env)));
    Ok(devices.collect::<Result<_, _>>()?)
}

/// The confinement of the workers, what happens when one fails, and where a VM that has `boot_bytes` of RAM at
/// boot may have more.
pub(super) fn env(confinement: &Confinement, vm_exit: &VmExit, boot_bytes: u64) -> Env {
    let vm_exit = vm_exit.clone();
    Env {
        confinement: confinement.clone(),
        report: Arc::new(move |report| match report {
            // The VM continues and the guest's driver resets the device. The worker bounds the number of
            // reports.
            Report::Stopped { device, fault } => eprintln!("nacre-vmm: virtio {device} stopped: {fault}"),
            Report::Died { device, death } => vm_exit.set_fault(format!("virtio {device}"), death),
        }),
        hotplug: Ranges::of(boot_bytes).hotplug,
    }
}

/// A device with its transport, which the buses have, too. The vCPUs are paused before it, since their
/// threads lock the transport.
pub(super) struct AttachedDevice(Arc<Mutex<PciTransport>>);

impl AttachedDevice {
    /// Gives the device guest memory that has grown.
    pub(super) fn set_memory(&self, memory: &Arc<Memory>) -> Result<(), DeviceError> {
        PciTransport::lock(&self.0).set_memory(memory)
    }
}

impl Pausable for AttachedDevice {
    fn pause(&mut self) -> Result<(), PauseError> {
        // The state of the queues is for a snapshot; the worker keeps them.
        let _ = PciTransport::lock(&self.0).device().pause()?;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), PauseError> {
        Ok(PciTransport::lock(&self.0).device().resume()?)
    }
}

/// Puts each of `devices` into a slot of the PCI bus and attaches it to KVM.
pub(super) fn attach(
    devices: Vec<Device>,
    vm: &Vm,
    memory: &Arc<Memory>,
    buses: &mut IoBuses,
) -> Result<Vec<AttachedDevice>, Error> {
    let count = devices.len();
    if count > usize::from(pci::MAX_SLOTS) {
        return Err(Error::TooManyDevices(count));
    }
    let config_pages = RegisterPages::allocate(count.saturating_mul(PAGES_PER_FUNCTION))?;
    let bar0_pages = config_pages.skip(count);
    let mut window = ConfigWindow::default();
    let mut attached = Vec::with_capacity(count);
    for (slot, device) in (0..).zip(devices) {
        let index = usize::from(slot);
        let pages = FunctionPages {
            config: config_pages.skip(index),
            bar0: bar0_pages.skip(index.saturating_mul(BAR0_PAGES)),
        };
        let name = device.name();
        let placement = placement(&device, vm, slot, pages)?;
        let [bar0, bar1] = placement.bars.map(u64::from);
        let transport = PciTransport::new(device, Arc::clone(memory), placement);
        let transport = Arc::new(Mutex::new(transport));
        let areas = PciTransport::areas(&transport);
        attached.push(AttachedDevice(transport));
        buses.mmio.insert(name, bar0, u64::from(BAR_BYTES), areas.bar0)?;
        buses.mmio.insert(
            format!("{name} notifications"),
            bar1,
            u64::from(BAR_BYTES),
            areas.bar1,
        )?;
        window.push(areas.config);
    }
    let ecam = u64::from(layout::PCI_CONFIG);
    buses
        .mmio
        .insert("pci configuration", ecam, pci::ECAM_BYTES, Box::new(window))?;
    map_registers(vm, &config_pages, count)?;
    Ok(attached)
}

/// Lets the guest read the registers of the devices in the first `count` slots without exits.
fn map_registers(vm: &Vm, config_pages: &RegisterPages, count: usize) -> Result<(), Error> {
    let bar0_bytes = (count as u64).saturating_mul(BAR_BYTES.into());
    vm.map_registers(
        0,
        u64::from(layout::PCI_WINDOW),
        &config_pages.skip(count),
        bar0_bytes,
    )?;
    for (slot, index) in (0..).zip(0..count) {
        let address = u64::from(layout::PCI_CONFIG).saturating_add(pci::slot_offset(slot));
        let page = config_pages.skip(index);
        vm.map_registers(
            u32::from(slot).saturating_add(1),
            address,
            &page,
            PAGE_BYTES as u64,
        )?;
    }
    Ok(())
}

/// The addresses and notifications of the device in `slot`. Registers the ioeventfds with KVM.
fn placement(device: &Device, vm: &Vm, slot: u8, pages: FunctionPages) -> Result<Placement, Error> {
    let bars = layout::pci_bars(slot);
    let [_, notifications] = bars;
    let mut ioeventfds = Vec::new();
    for (queue, _) in (0..).zip(device.queue_sizes()) {
        let address = notifications.saturating_add(notify_offset(queue));
        ioeventfds.push(vm.ioeventfd(u64::from(address))?);
    }
    Ok(Placement {
        bars,
        pages,
        ioeventfds,
        vectors: VECTORS,
        send: vm.message_sender(),
    })
}
