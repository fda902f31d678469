//! The virtio devices of a VM: creates each with its worker and puts it into a slot of the PCI bus, with
//! registers, interrupts and notifications. Called by the machine's steps, before any thread runs guest code,
//! and by [`super::Machine::attach`] and [`super::Machine::attach_common`] while the guest runs.
//!
//! A device that is added later differs in two respects (docs/decisions/0007-virtio-pci.md): its registers are
//! not mapped into the guest, so that each read exits; and it says that its addresses are fixed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Error;
use super::pause::{Pausable, PauseError};
use crate::devices::pci::{self, SlotWindow};
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::kvm::vcpu::IoBuses;
use crate::layout;
use crate::layout::BAR_BYTES;
use crate::memory::ranges::Ranges;
use crate::memory::{Memory, SharedMemory};
use crate::transport::pci::function::FunctionPages;
use crate::transport::pci::page::{PAGE_BYTES, RegisterPages};
use crate::transport::pci::{Areas, PciTransport, Placement, notify_offset};
use crate::virtio::mem::Plugger;
use crate::virtio::worker::MemorySender;
use crate::virtio::{Device, DeviceError, Env, Report, balloon, rng};
use crate::vm_exit::VmExit;
use vmm_sys_util::eventfd::EventFd;

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

/// The name and the `spawn` of a device that needs nothing from the host.
type CommonDevice = (&'static str, fn(&Env) -> Result<Device, DeviceError>);

/// The devices that every VM has, because they need nothing from the host. No boot needs them, so they are
/// added when the guest runs: a boot would have 178 exits more for these two (docs/boot.md). A template has the balloon.
const EVERY_VM: [CommonDevice; 2] = [("rng", rng::spawn), ("balloon", balloon::spawn)];

/// What creates the device of every VM that is called `name`, if there is one.
pub(super) fn common(name: &str) -> Option<DeviceBuilder> {
    let (_, spawn) = EVERY_VM.into_iter().find(|(common, _)| *common == name)?;
    Some(Box::new(spawn))
}

/// Creates the devices of `builders` with their workers, in the order of their slots.
pub(super) fn create(builders: Vec<DeviceBuilder>, env: &Env) -> Result<Vec<Device>, Error> {
    let devices = builders.into_iter().map(|build| build(env));
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
struct AttachedDevice {
    transport: Arc<Mutex<PciTransport>>,
    /// Without a lock: a vCPU thread may hold the transport while it waits for the worker.
    memory: MemorySender,
    plugger: Option<Plugger>,
}

impl Pausable for AttachedDevice {
    fn pause(&mut self) -> Result<(), PauseError> {
        // The worker keeps the state of the queues, and a snapshot asks for it again.
        let _ = PciTransport::lock(&self.transport).device().pause()?;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), PauseError> {
        Ok(PciTransport::lock(&self.transport).device().resume()?)
    }
}

/// The slots of the PCI bus with their devices.
pub(super) struct PciSlots {
    env: Env,
    /// Of all devices.
    memory: SharedMemory,
    /// By slot.
    devices: BTreeMap<u8, AttachedDevice>,
    /// The first slot that was empty when the guest was started.
    first_late: u8,
    /// Of all slots.
    config: SlotWindow,
    /// BAR 0 and BAR 1 of the slots from `first_late` on.
    bars: [SlotWindow; 2],
    /// The pages of these slots that have had a device: pages are never freed, but used again.
    pages: BTreeMap<u8, RegisterPages>,
}

impl PciSlots {
    /// Puts each of `devices` into a slot of the PCI bus and attaches it to KVM. `env` is for devices that
    /// are added later.
    pub(super) fn fill(
        devices: Vec<Device>,
        env: Env,
        vm: &Vm,
        memory: &Arc<Memory>,
        buses: &mut IoBuses,
    ) -> Result<Self, Error> {
        let count = devices.len();
        let first_late = u8::try_from(count)
            .ok()
            .filter(|count| *count <= pci::MAX_SLOTS)
            .ok_or(Error::TooManyDevices(count))?;
        let bar = || SlotWindow::bar(first_late, u64::from(BAR_BYTES));
        let mut slots = Self {
            env,
            memory: SharedMemory::new(Arc::clone(memory)),
            devices: BTreeMap::new(),
            first_late,
            config: SlotWindow::config(),
            bars: [bar(), bar()],
            pages: BTreeMap::new(),
        };
        let config_pages = RegisterPages::allocate(count.saturating_mul(PAGES_PER_FUNCTION))?;
        let bar0_pages = config_pages.skip(count);
        for (slot, device) in (0..).zip(devices) {
            let index = usize::from(slot);
            let pages = FunctionPages {
                config: config_pages.skip(index),
                bar0: bar0_pages.skip(index.saturating_mul(BAR0_PAGES)),
            };
            let name = device.name();
            let placement = placement(&device, vm, slot, pages)?;
            let [bar0, bar1] = placement.bars.map(u64::from);
            let areas = slots.put(slot, device, placement);
            buses.mmio.insert(name, bar0, u64::from(BAR_BYTES), areas.bar0)?;
            let notifications = format!("{name} notifications");
            buses
                .mmio
                .insert(notifications, bar1, u64::from(BAR_BYTES), areas.bar1)?;
            slots.config.insert(slot, areas.config);
        }
        slots.insert_windows(buses)?;
        map_registers(vm, &config_pages, count)?;
        Ok(slots)
    }

    /// Puts the windows on the bus.
    fn insert_windows(&self, buses: &mut IoBuses) -> Result<(), Error> {
        let ecam = u64::from(layout::PCI_CONFIG);
        let config = Box::new(self.config.clone());
        buses
            .mmio
            .insert("pci configuration", ecam, pci::ECAM_BYTES, config)?;
        let slots = u64::from(pci::MAX_SLOTS.saturating_sub(self.first_late));
        let names = ["later devices", "later devices notifications"];
        let starts = layout::pci_bars(self.first_late);
        for ((name, start), window) in names.into_iter().zip(starts).zip(&self.bars) {
            let bytes = slots.saturating_mul(u64::from(BAR_BYTES));
            buses
                .mmio
                .insert(name, u64::from(start), bytes, Box::new(window.clone()))?;
        }
        Ok(())
    }

    /// Remembers `device` and returns its areas, which the guest does not see yet.
    fn put(&mut self, slot: u8, device: Device, placement: Placement) -> Areas {
        let (memory, plugger) = (device.memory_sender(), device.plugger().cloned());
        let transport = PciTransport::new(device, self.memory.clone(), placement);
        let transport = Arc::new(Mutex::new(transport));
        let areas = PciTransport::areas(&transport);
        let attached = AttachedDevice {
            transport,
            memory,
            plugger,
        };
        self.devices.insert(slot, attached);
        areas
    }

    /// Creates a device while the guest runs and puts it into an empty slot, which is returned. If this
    /// fails, nothing has changed.
    pub(super) fn attach(&mut self, build: DeviceBuilder, vm: &Vm) -> Result<u8, Error> {
        let slot = (self.first_late..pci::MAX_SLOTS)
            .find(|slot| !self.devices.contains_key(slot))
            .ok_or(Error::TooManyDevices(self.devices.len().saturating_add(1)))?;
        let pages = match self.pages.get(&slot) {
            Some(pages) => *pages,
            None => RegisterPages::allocate(PAGES_PER_FUNCTION)?,
        };
        self.pages.insert(slot, pages);
        let device = build(&self.env)?;
        let function_pages = FunctionPages {
            config: pages,
            bar0: pages.skip(1),
        };
        let placement = Placement {
            has_fixed_bars: true,
            ..placement(&device, vm, slot, function_pages)?
        };
        let areas = self.put(slot, device, placement);
        let [bar0, bar1] = &self.bars;
        bar0.insert(slot, areas.bar0);
        bar1.insert(slot, areas.bar1);
        // Last: from now on, the guest finds the device.
        self.config.insert(slot, areas.config);
        Ok(slot)
    }

    /// Removes the device in `slot`, which [`PciSlots::attach`] has put there, and ends its worker.
    pub(super) fn detach(&mut self, slot: u8, vm: &Vm) -> Result<(), Error> {
        if self.plugger(slot).is_some() {
            return Err(Error::Permanent(slot));
        }
        let device = (slot >= self.first_late)
            .then(|| self.devices.remove(&slot))
            .flatten()
            .ok_or(Error::NoSuchDevice(slot))?;
        self.config.remove(slot);
        self.bars.iter().for_each(|window| window.remove(slot));
        let transport = PciTransport::lock(&device.transport);
        remove_notifications(vm, slot, transport.ioeventfds());
        Ok(())
    }

    /// Plugs memory, if the device in `slot` does that.
    pub(super) fn plugger(&self, slot: u8) -> Option<Plugger> {
        self.devices.get(&slot)?.plugger.clone()
    }

    /// Gives guest memory that has grown to the devices, those that are added later, too. Returns what sends it
    /// to those that there are.
    pub(super) fn set_memory(&self, memory: &Arc<Memory>) -> impl Iterator<Item = &MemorySender> {
        self.memory.set(Arc::clone(memory));
        self.devices.values().map(|device| &device.memory)
    }

    /// Slots and names of all devices.
    pub(super) fn names(&self) -> Vec<(u8, &'static str)> {
        let devices = self.devices.iter();
        devices
            .map(|(slot, device)| (*slot, device.memory.device()))
            .collect()
    }

    /// What creates the devices of every VM that this one does not have.
    pub(super) fn missing_common(&self) -> Vec<DeviceBuilder> {
        let names = self.names();
        let is_missing = |name: &str| names.iter().all(|(_, found)| *found != name);
        let missing = EVERY_VM.iter().filter(|(name, _)| is_missing(name));
        missing.filter_map(|(name, _)| common(name)).collect()
    }

    /// The transport of the device in `slot`.
    pub(super) fn transport(&self, slot: u8) -> Option<MutexGuard<'_, PciTransport>> {
        Some(PciTransport::lock(&self.devices.get(&slot)?.transport))
    }

    /// The devices that can be paused, in the order of their slots.
    pub(super) fn pausable(&mut self) -> impl Iterator<Item = &mut dyn Pausable> {
        self.devices
            .values_mut()
            .map(|device| device as &mut dyn Pausable)
    }
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

/// The addresses and notifications of the device in `slot`. Registers the ioeventfds with KVM, all or none.
fn placement(device: &Device, vm: &Vm, slot: u8, pages: FunctionPages) -> Result<Placement, Error> {
    let mut ioeventfds = Vec::new();
    for (queue, _) in (0..).zip(device.queue_sizes()) {
        match vm.ioeventfd(notification_address(slot, queue)) {
            Ok(event) => ioeventfds.push(event),
            Err(error) => {
                remove_notifications(vm, slot, &ioeventfds);
                return Err(error.into());
            }
        }
    }
    Ok(Placement {
        bars: layout::pci_bars(slot),
        has_fixed_bars: false,
        pages,
        ioeventfds,
        vectors: VECTORS,
        send: vm.message_sender(),
    })
}

/// The address to which the guest writes to notify `queue` of the device in `slot`.
fn notification_address(slot: u8, queue: u16) -> u64 {
    let [_, notifications] = layout::pci_bars(slot);
    u64::from(notifications.saturating_add(notify_offset(queue)))
}

/// Removes the ioeventfds of the first queues of the device in `slot` from KVM.
fn remove_notifications(vm: &Vm, slot: u8, ioeventfds: &[EventFd]) {
    for (queue, event) in (0..).zip(ioeventfds) {
        if let Err(error) = vm.remove_ioeventfd(event, notification_address(slot, queue)) {
            eprintln!("nacre-vmm: PCI slot {slot}, queue {queue}: {error}");
        }
    }
}
