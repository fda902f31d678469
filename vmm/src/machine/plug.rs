//! Memory that is plugged into a running VM. [`super::Machine`] calls it for a request of the engine: the
//! host's memory is mapped first, then each device gets it, then KVM, and only then the guest is asked to
//! plug it ([`crate::virtio::mem`]). Never takes memory away: that is the guest's part.
//!
//! A guest has no access to addresses beyond the largest size that was ever requested, rounded up to 128 MiB:
//! there is no memory slot, and the devices find no memory there.

use std::sync::Arc;

use nacre_protocol::control::MEMORY_BLOCK_MIB;

use super::memory;
use super::memory::hotplug::Hotplug;
use super::virtio_devices::PciSlots;
use crate::kvm::{self, Vm};
use crate::virtio::mem::{Plugger, Sizes};
use crate::virtio::{DeviceError, Memory};

const MIB: u64 = 1 << 20;

/// Why the guest was not asked to plug memory.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The VM was configured without virtio-mem.
    #[error("this VM has no device to plug memory (mem)")]
    NoDevice,
    /// The size is not one that can be plugged.
    #[error("{mib} MiB can't be plugged: must be a multiple of {MEMORY_BLOCK_MIB} up to {max_mib}")]
    Size {
        /// The size that was asked for.
        mib: u32,
        /// Most memory that can be plugged.
        max_mib: u64,
    },
    /// The host has no memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// A device does not take the memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// KVM does not take the memory.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
}

/// The memory that can be plugged into a VM.
pub(super) struct Plug {
    plugger: Plugger,
    hotplug: Hotplug,
    /// How often memory was added to KVM.
    slots: u32,
}

impl Plug {
    /// For the device of `plugger`.
    pub(super) fn new(plugger: Plugger) -> Self {
        Self {
            hotplug: Hotplug::new(plugger.region()),
            plugger,
            slots: 0,
        }
    }

    /// See [`super::Machine::plug_memory`]. `memory` is all of guest memory, and stays so.
    pub(super) fn request(
        &mut self,
        mib: u32,
        vm: &Vm,
        memory: &mut Arc<Memory>,
        devices: &PciSlots,
    ) -> Result<(), PlugError> {
        let (bytes, max_mib) = (u64::from(mib).saturating_mul(MIB), self.hotplug.max_bytes() / MIB);
        if !mib.is_multiple_of(MEMORY_BLOCK_MIB) || u64::from(mib) > max_mib {
            return Err(PlugError::Size { mib, max_mib });
        }
        if let Some(growth) = self.hotplug.grow(memory, bytes)? {
            let grown = Arc::new(growth.memory.clone());
            devices.set_memory(&grown)?;
            let added = (growth.added.start, growth.added.bytes);
            vm.add_memory(self.slots, added, growth.host)?;
            self.slots = self.slots.saturating_add(1);
            self.hotplug.commit(&growth);
            *memory = grown;
        }
        self.plugger.request(self.hotplug.mapped(), bytes);
        Ok(())
    }

    /// How much is requested, and plugged.
    pub(super) fn sizes(&self) -> Sizes {
        self.plugger.sizes()
    }
}
