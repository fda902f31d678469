//! A machine that continues from a snapshot. Called by the standalone mode in place of [`super::build`].
//!
//! The order follows from what refers to what: memory and devices exist before their states are set; KVM
//! takes a vCPU's state while its thread does not exist ([`crate::snapshot::vcpu`]); the clock starts last;
//! the new generation id interrupts a vCPU, which must have its local APIC.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::assembly::{self, Assembly, Parts};
use super::memory::ranges::Ranges;
use super::memory::{self, Backing};
use super::pause::RunState;
use super::{DeviceBuilder, Error, Failure, Machine, vcpus};
use crate::config::{Config, ConsoleOutput};
use crate::jail::Confinement;
use crate::snapshot::Snapshot;
use crate::snapshot::state::{MachineState, Size};

/// Open files and devices that a machine is restored with.
pub struct Resources {
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: OwnedFd,
    /// Where the machine continues.
    pub snapshot: Snapshot,
    /// The console's ring, [`nacre_protocol::console::RING_BYTES`] long.
    pub console_ring: Option<File>,
    /// The virtio devices with which the machine was saved, in the order of their slots.
    pub devices: Vec<DeviceBuilder>,
}

/// Restores a machine, which is then paused: [`Machine::resume`] lets the guest continue, and
/// [`Machine::renew_generation_id`] must be called before. Calls `on_step` with the name of each finished
/// step.
///
/// # Errors
/// [`Failure`] with the step that failed.
pub fn restore(
    can_be_saved: bool,
    resources: Resources,
    confinement: &Confinement,
    mut on_step: impl FnMut(&'static str),
) -> Result<Machine, Failure> {
    let Resources {
        kvm,
        snapshot: Snapshot {
            machine: saved,
            memory,
        },
        console_ring,
        devices,
    } = resources;
    let config = config(saved.size, can_be_saved);
    let backing = Backing::File {
        file: memory,
        offset: 0,
    };
    let ranges = Ranges::of(config.memory_bytes());
    let memory = memory::map(&ranges, &backing).map_err(Failure::at("map guest memory"))?;
    let memory = Arc::new(memory);
    let vm = assembly::create_vm(kvm, &memory).map_err(Failure::at("create virtual machine"))?;
    on_step("virtual machine created");

    let parts = Parts {
        config: &config,
        console_ring,
        devices,
        confinement,
        serial: Some(&saved.serial),
    };
    let assembly = Assembly::create(vm, memory, parts)?;
    restore_devices(&assembly, &saved).map_err(Failure::at("restore devices"))?;
    on_step("devices restored");

    let vcpus = assembly.spawn_vcpus(&config, vcpus::Start::Saved(&saved), confinement)?;
    assembly
        .vm
        .set_clock_ns(saved.clock_ns)
        .map_err(Failure::at("set the guest's clock"))?;
    on_step("vCPUs restored");
    Ok(assembly.complete(vcpus, RunState::Paused, saved.size))
}

/// The configuration as far as a machine has it that has booted before.
fn config(size: Size, can_be_saved: bool) -> Config {
    Config {
        pod: "restored".to_owned(),
        memory_mib: size.memory_mib,
        vcpus: size.vcpus,
        max_vcpus: size.max_vcpus,
        extra_cmdline: String::new(),
        console: ConsoleOutput::Stderr,
        can_be_saved,
    }
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
    let named = |device: &crate::snapshot::state::DeviceState| (device.slot, device.name.clone());
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
