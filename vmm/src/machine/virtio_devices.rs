//! The virtio devices of a VM: creates each with its worker and attaches it to an MMIO window, an interrupt
//! and notifications. Called by the machine's steps, before any thread runs guest code.

use std::sync::Arc;

use super::vm_exit::VmExit;
use super::{Error, layout};
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::kvm::vcpu::IoBuses;
use crate::transport::mmio::{INTERRUPT_ACK, KvmNotifiers, MmioTransport, QUEUE_NOTIFY, USED_BUFFERS};
use crate::virtio::{Device, DeviceError, Env, Memory, Report, balloon, rng};

/// Creates one device with its worker.
pub type DeviceBuilder = Box<dyn FnOnce(&Env) -> Result<Device, DeviceError>>;

/// A device's `spawn`, if it needs nothing from the host.
type Spawn = fn(&Env) -> Result<Device, DeviceError>;

/// The devices that every VM has, because they need nothing from the host. The guest finds them after the
/// others.
const EVERY_VM: [Spawn; 2] = [rng::spawn, balloon::spawn];

/// Creates the devices with their workers, in the order of their MMIO windows: those of `builders`, then those
/// that every VM has.
pub(super) fn create(
    builders: Vec<DeviceBuilder>,
    confinement: &Confinement,
    vm_exit: &VmExit,
) -> Result<Vec<Device>, Error> {
    let env = worker_env(confinement, vm_exit);
    let configured = builders.into_iter().map(|build| build(&env));
    let devices = configured.chain(EVERY_VM.into_iter().map(|spawn| spawn(&env)));
    Ok(devices.collect::<Result<_, _>>()?)
}

/// The confinement of the workers, and what happens when one fails.
fn worker_env(confinement: &Confinement, vm_exit: &VmExit) -> Env {
    let vm_exit = vm_exit.clone();
    Env {
        confinement: confinement.clone(),
        report: Arc::new(move |report| match report {
            // The VM continues and the guest's driver resets the device. The worker bounds the number of
            // reports.
            Report::Stopped { device, fault } => eprintln!("nacre-vmm: virtio {device} stopped: {fault}"),
            Report::Died { device, death } => vm_exit.set_fault(format!("virtio {device}"), death),
        }),
    }
}

/// Attaches each of `devices` to the MMIO bus and to KVM; returns how many there are.
pub(super) fn attach(
    devices: Vec<Device>,
    vm: &Vm,
    memory: &Arc<Memory>,
    buses: &mut IoBuses,
) -> Result<u8, Error> {
    let count = u8::try_from(devices.len())
        .ok()
        .filter(|count| *count <= layout::MAX_VIRTIO_DEVICES);
    let count = count.ok_or(Error::TooManyDevices(devices.len()))?;
    for (index, device) in (0..count).zip(devices) {
        let window = layout::mmio_window(index);
        let notifiers = notifiers(&device, vm, index)?;
        let name = device.name();
        let transport = MmioTransport::new(device, Arc::clone(memory), notifiers);
        buses
            .mmio
            .insert(name, window, layout::MMIO_WINDOW_BYTES, Box::new(transport))?;
    }
    Ok(count)
}

/// Registers the irqfd and the ioeventfds of the `index`th device with KVM.
fn notifiers(device: &Device, vm: &Vm, index: u8) -> Result<KvmNotifiers, Error> {
    let window = layout::mmio_window(index);
    let mut ioeventfds = Vec::new();
    for (queue, _) in (0..).zip(device.queue_sizes()) {
        ioeventfds.push(vm.ioeventfd(window.saturating_add(QUEUE_NOTIFY), queue)?);
    }
    vm.discard_writes(window.saturating_add(INTERRUPT_ACK), USED_BUFFERS)?;
    Ok(KvmNotifiers {
        irqfd: vm.irqfd(layout::virtio_gsi(index))?,
        ioeventfds,
    })
}
