//! Saving a paused machine to a snapshot. Called by the standalone mode; changes nothing of the machine,
//! which can run on or end.

use super::Machine;
use super::pause::{PauseError, RunState};
use crate::kvm;
use crate::memory::page_range::PageRange;
use crate::snapshot::content::FileId;
use crate::snapshot::state::{DeviceState, MachineState};
use crate::snapshot::{self, Target, WriteError};
use crate::virtio::DeviceError;
use crate::virtio::balloon::REPORTING;

/// The virtio devices whose whole state is in their registers, their queues and guest memory: virtio-fs until
/// its driver begins a session. vsock loses its connections, of which it informs the guest. Others have files of
/// the host, or memory that was plugged in. The driver of rng has read bytes ahead, which all guests that continue
/// would give to their programs.
const SAVED: [&str; 3] = ["vsock", "fs", "balloon"];

/// Why a machine was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// [`Machine::pause`] was not called.
    #[error("the guest is not paused")]
    NotPaused,
    /// The configuration says that the guest is not to be saved.
    #[error("the VM was not configured to be saved")]
    NotPrepared,
    /// A device has state outside of its queues, or the guest has secrets of it.
    #[error("virtio {device} in PCI slot {slot} can't be saved: it has state outside of its queues")]
    Device {
        /// The device.
        device: &'static str,
        /// Its slot.
        slot: u8,
    },
    /// The guest has mounted the file system of the device, or has done so before.
    #[error(
        "virtio {device} in PCI slot {slot} can't be saved: the guest has used it, and the VMM has files open for it"
    )]
    Session {
        /// The device.
        device: &'static str,
        /// Its slot.
        slot: u8,
    },
    /// A vCPU's thread does not answer.
    #[error(transparent)]
    Vcpu(#[from] PauseError),
    /// KVM refuses a request.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// A device does not answer.
    #[error(transparent)]
    Worker(#[from] DeviceError),
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Machine {
    /// Writes the memory of the paused machine to `target`, and returns what [`Target::finish`] takes.
    ///
    /// # Errors
    /// [`SaveError`]; `target` then has no snapshot that can be opened.
    pub fn capture(&self, target: &Target) -> Result<(MachineState, FileId), SaveError> {
        if self.state != RunState::Paused {
            return Err(SaveError::NotPaused);
        }
        let devices = self.save_devices()?;
        let (host, vcpus) = self.vcpus.save()?;
        // It goes on while the memory is written, for seconds.
        let clock_ns = self.vm.clock_ns()?;
        let memory = snapshot::memory::write(&self.memory, target.memory());
        let (memory, data) = memory.map_err(target.memory_failed())?;
        let machine = MachineState {
            size: self.size,
            host,
            clock_ns,
            vcpus,
            io_apic: self.io_apic.save(),
            serial: self.serial_input.save(),
            pci_address: self.pci_ports.address(),
            devices,
            early_writes: Vec::new(),
            data,
        };
        Ok((machine, memory))
    }

    /// Makes KVM log the writes of the guest, which is paused, for [`Machine::early_writes`].
    ///
    /// # Errors
    /// [`SaveError::Kvm`].
    pub fn log_writes(&self) -> Result<(), SaveError> {
        Ok(self.vm.log_writes(&self.memory)?)
    }

    /// The pages that the guest and its devices have written since [`Machine::capture`] and [`Machine::log_writes`],
    /// of a paused machine.
    ///
    /// # Errors
    /// [`SaveError`] if KVM has no log, or the file can't be read.
    pub fn early_writes(&self, target: &Target) -> Result<Vec<PageRange>, SaveError> {
        let logged = self.vm.logged_writes(&self.memory)?;
        let written = snapshot::memory::written(&self.memory, target.memory(), &logged);
        Ok(written.map_err(target.memory_failed())?)
    }

    /// How many reports of free pages the guest, which is paused, has sent, modulo 2^16; None if it has no driver that
    /// sends any.
    ///
    /// # Errors
    /// [`SaveError::Worker`] if the balloon does not answer.
    pub fn free_page_reports(&self) -> Result<Option<u16>, SaveError> {
        let mut devices = self.devices.names().into_iter();
        let balloon = devices.find(|(_, name)| *name == "balloon");
        let Some(mut transport) = balloon.and_then(|(slot, _)| self.devices.transport(slot)) else {
            return Ok(None);
        };
        // It is paused already, and tells how far its queues were served.
        let queues = transport.device().pause()?;
        Ok(queues.get(usize::from(REPORTING)).map(|queue| queue.next_avail))
    }

    fn save_devices(&self) -> Result<Vec<DeviceState>, SaveError> {
        let names = self.devices.names();
        if let Some((slot, device)) = names.iter().copied().find(|(_, name)| !SAVED.contains(name)) {
            return Err(SaveError::Device { device, slot });
        }
        let mut saved = Vec::with_capacity(names.len());
        for (slot, name) in names {
            if let Some(mut transport) = self.devices.transport(slot) {
                if transport.device().has_session() {
                    return Err(SaveError::Session { device: name, slot });
                }
                saved.push(DeviceState {
                    slot,
                    name: name.to_owned(),
                    transport: transport.save()?,
                });
            }
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests;
