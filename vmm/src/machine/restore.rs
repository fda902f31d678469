//! A machine that continues from a snapshot. Called by the standalone mode and, with a template, by
//! [`crate::shim_managed`], in place of [`super::build`].
//!
//! The order follows from what refers to what: the host is compared and memory is mapped before anything else, so
//! that a guest can still boot in this process ([`prepare`]); memory and devices exist before their states are set; KVM
//! takes a vCPU's state while its thread does not exist ([`crate::snapshot::vcpu`]); the clock starts last;
//! the new generation id interrupts a vCPU, which must have its local APIC.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;

use super::assembly::{Assembly, Parts};
use super::pause::RunState;
use super::{DeviceBuilder, Error, Failure, Machine, vcpus, virtio_devices};
use crate::config::Config;
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::memory::Memory;
use crate::memory::ranges::Ranges;
use crate::memory::{self, Backing};
use crate::snapshot::Snapshot;
use crate::snapshot::host::Host;
use crate::snapshot::state::{DeviceState, MachineState};

/// Open files and devices that a machine is restored with.
pub struct Resources {
    /// Of [`prepare`], with this snapshot.
    pub prepared: Prepared,
    /// Where the machine continues.
    pub snapshot: Snapshot,
    /// The console's ring, [`nacre_protocol::console::RING_BYTES`] long.
    pub console_ring: Option<File>,
    /// The virtio devices with which the machine was saved, in the order of their slots. Those that every VM has may be
    /// missing at the end.
    pub devices: Vec<DeviceBuilder>,
}

/// A VM on a host that does not differ from the snapshot's, and the snapshot's memory.
#[derive(Debug)]
pub struct Prepared {
    /// It has vCPU 0, whose TSC was compared, and nothing else.
    vm: Vm,
    first: VcpuFd,
    memory: Memory,
}

/// Compares this host with the one that `snapshot` was made on, and maps the snapshot's memory. `kvm` is `/dev/kvm`,
/// open for reading and writing.
///
/// # Errors
/// [`Failure`] with the step that failed, or with the first difference.
pub fn prepare(kvm: OwnedFd, snapshot: &Snapshot) -> Result<Prepared, Failure> {
    let saved = &snapshot.machine;
    let (vm, first) = compare_host(kvm, saved).map_err(Failure::at("compare the host"))?;
    let failed = "map guest memory";
    let file = snapshot.memory.try_clone().map_err(memory::Error::File);
    let backing = Backing::File {
        file: file.map_err(Failure::at(failed))?,
        offset: 0,
        data: saved.data.clone(),
    };
    let ranges = Ranges::of(u64::from(saved.size.memory_mib) << 20);
    let memory = memory::map(&ranges, &backing).map_err(Failure::at(failed))?;
    Ok(Prepared { vm, first, memory })
}

fn compare_host(kvm: OwnedFd, saved: &MachineState) -> Result<(Vm, VcpuFd), Error> {
    let vcpus = saved.size.max_vcpus;
    if let Some(missing) = (0..vcpus).nth(saved.vcpus.len()) {
        return Err(Error::MissingVcpu(missing));
    }
    let vm = Vm::new(kvm)?;
    let first = vm.create_vcpu(0)?;
    saved.host.compare(&Host::of(&vm, &first, vcpus)?)?;
    Ok((vm, first))
}

/// Restores a machine, which is then paused: [`Machine::resume`] lets the guest continue, and
/// [`Machine::renew_generation_id`] must be called before. `config` has the size of the snapshot. Calls
/// `on_step` with the name of each finished step.
///
/// # Errors
/// [`Failure`] with the step that failed.
pub fn restore(
    config: &Config,
    resources: Resources,
    confinement: &Confinement,
    mut on_step: impl FnMut(&'static str),
) -> Result<Machine, Failure> {
    let Resources {
        prepared: Prepared { vm, first, memory },
        snapshot: Snapshot { machine: saved, .. },
        console_ring,
        mut devices,
    } = resources;
    let common = saved.devices.iter().skip(devices.len());
    devices.extend(common.map_while(|device| virtio_devices::common(&device.name)));
    memory::copy_ahead(&memory, &saved.early_writes);
    let memory = Arc::new(memory);
    vm.set_memory(&memory)
        .map_err(Failure::at("create virtual machine"))?;
    on_step("virtual machine created");

    let parts = Parts {
        config,
        console_ring,
        devices,
        confinement,
        serial: Some(&saved.serial),
    };
    let assembly = Assembly::create(vm, memory, parts)?;
    restore_devices(&assembly, &saved).map_err(Failure::at("restore devices"))?;
    on_step("devices restored");

    let start = vcpus::Start::Saved(&saved);
    let vcpus = assembly.spawn_vcpus(config, start, Some(first), confinement)?;
    assembly
        .vm
        .set_clock_ns(saved.clock_ns)
        .map_err(Failure::at("set the guest's clock"))?;
    on_step("vCPUs restored");
    Ok(assembly.complete(vcpus, RunState::Paused, saved.size))
}

/// The devices of `saved` that a configuration must have first: all but those that every VM has.
#[must_use]
pub fn configured_devices(saved: &MachineState) -> &[DeviceState] {
    let common = saved.devices.iter().rev();
    let common = common.take_while(|device| virtio_devices::common(&device.name).is_some());
    let count = saved.devices.len().saturating_sub(common.count());
    saved.devices.get(..count).unwrap_or_default()
}

fn restore_devices(assembly: &Assembly, saved: &MachineState) -> Result<(), Error> {
    if !assembly.io_apic.restore(&saved.io_apic) {
        return Err(Error::OtherDevice("I/O APIC"));
    }
    assembly.pci_ports.set_address(saved.pci_address);
    let found: Vec<(u8, String)> = assembly
        .devices
        .names()
        .into_iter()
        .map(|(slot, name)| (slot, name.to_owned()))
        .collect();
    let named = |device: &DeviceState| (device.slot, device.name.clone());
    let names: Vec<(u8, String)> = saved.devices.iter().map(named).collect();
    if names != found {
        return Err(Error::OtherDevices { saved: names, found });
    }
    for device in &saved.devices {
        if let Some(mut transport) = assembly.devices.transport(device.slot) {
            transport.restore(&device.transport)?;
        }
    }
    Ok(())
}
