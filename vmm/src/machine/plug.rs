//! Memory that is plugged into a running VM. [`super::Machine`] calls it for a request of the engine: the
//! host's memory is mapped first, then each device gets it, then KVM, and only then the guest is asked to
//! plug it ([`crate::virtio::mem`]). The main thread does not wait for the devices: the last one that has the
//! memory wakes it. Never takes memory away: that is the guest's part.
//!
//! A guest has no access to addresses beyond the largest size that was ever requested, rounded up to 128 MiB:
//! there is no memory slot, and the devices find no memory there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nacre_protocol::control::MEMORY_BLOCK_MIB;

use super::virtio_devices::PciSlots;
use crate::kvm::{self, Vm};
use crate::memory;
use crate::memory::Memory;
use crate::memory::hotplug::{Growth, Hotplug};
use crate::virtio::DeviceError;
use crate::virtio::mem::{Plugger, Sizes};
use vmm_sys_util::eventfd::EventFd;

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
    /// A device has not taken the memory in time. It may take it later.
    #[error("virtio {device} has not used more guest memory within {DEADLINE:?}")]
    TimedOut {
        /// The device.
        device: &'static str,
    },
    /// An earlier request waits.
    #[error("the VM is getting memory already")]
    Busy,
    /// KVM does not take the memory.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
}

/// Called with the result of a request to plug memory.
pub type OnPlugged = Box<dyn FnOnce(Result<(), PlugError>)>;

/// How long the devices may take to use memory that was added: a worker may be in a slow system call of the
/// file server.
const DEADLINE: Duration = Duration::from_secs(10);

/// The memory that can be plugged into a VM.
pub(super) struct Plug {
    plugger: Plugger,
    hotplug: Hotplug,
    /// How often memory was added to KVM.
    slots: u32,
    /// Written by each device that has taken memory.
    taken: Arc<EventFd>,
    waiting: Option<Waiting>,
}

/// A request that waits until the devices use the memory that was added.
struct Waiting {
    growth: Growth,
    memory: Arc<Memory>,
    bytes: u64,
    devices: Vec<(&'static str, Arc<AtomicBool>)>,
    until: Instant,
    on_plugged: OnPlugged,
}

impl Plug {
    /// For the device of `plugger`. `taken` is written by each device that has taken memory that was added.
    pub(super) fn new(plugger: Plugger, taken: Arc<EventFd>) -> Self {
        Self {
            taken,
            hotplug: Hotplug::new(plugger.region()),
            plugger,
            slots: 0,
            waiting: None,
        }
    }

    /// See [`super::Machine::plug_memory`]. `memory` is all of guest memory.
    pub(super) fn request(&mut self, mib: u32, memory: &Memory, devices: &PciSlots, on_plugged: OnPlugged) {
        match self.begin(mib, memory, devices) {
            Err(error) => on_plugged(Err(error)),
            Ok(None) => on_plugged(Ok(())),
            Ok(Some(begun)) => self.waiting = Some(Waiting { on_plugged, ..begun }),
        }
    }

    /// Begins a request: None if it is done, since the memory is there.
    fn begin(&mut self, mib: u32, memory: &Memory, devices: &PciSlots) -> Result<Option<Waiting>, PlugError> {
        let (bytes, max_mib) = (u64::from(mib).saturating_mul(MIB), self.hotplug.max_bytes() / MIB);
        if !mib.is_multiple_of(MEMORY_BLOCK_MIB) || u64::from(mib) > max_mib {
            return Err(PlugError::Size { mib, max_mib });
        }
        if self.waiting.is_some() {
            return Err(PlugError::Busy);
        }
        let Some(growth) = self.hotplug.grow(memory, bytes)? else {
            self.plugger.request(self.hotplug.mapped(), bytes);
            return Ok(None);
        };
        let grown = Arc::new(growth.memory.clone());
        let mut asked = Vec::new();
        for device in devices.set_memory(&grown) {
            let has_taken = Arc::new(AtomicBool::new(false));
            asked.push((device.device(), Arc::clone(&has_taken)));
            let taken = Arc::clone(&self.taken);
            let on_taken = move || {
                has_taken.store(true, Ordering::Release);
                // Fails only if the counter would overflow, and then it is readable.
                let _ = taken.write(1);
            };
            device.send(Arc::clone(&grown), Box::new(on_taken))?;
        }
        Ok(Some(Waiting {
            growth,
            memory: grown,
            bytes,
            devices: asked,
            until: Instant::now() + DEADLINE,
            on_plugged: Box::new(drop),
        }))
    }

    /// When the request that waits fails.
    pub(super) fn until(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.until)
    }

    /// Completes the request that waits, if all devices have the memory, or its time is over at `now`. Sets
    /// `memory`, all of guest memory.
    pub(super) fn go_on(&mut self, now: Instant, vm: &Vm, memory: &mut Arc<Memory>) {
        let Some(waiting) = &self.waiting else { return };
        let missing = waiting
            .devices
            .iter()
            .find(|(_, has_taken)| !has_taken.load(Ordering::Acquire))
            .map(|(device, _)| *device);
        if missing.is_some() && now < waiting.until {
            return;
        }
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let result = match missing {
            Some(device) => Err(PlugError::TimedOut { device }),
            None => self.complete(&waiting, vm, memory),
        };
        (waiting.on_plugged)(result);
    }

    fn complete(&mut self, waiting: &Waiting, vm: &Vm, memory: &mut Arc<Memory>) -> Result<(), PlugError> {
        let growth = &waiting.growth;
        vm.add_memory(self.slots, (growth.added.start, growth.added.bytes), growth.host)?;
        self.slots = self.slots.saturating_add(1);
        self.hotplug.commit(growth);
        *memory = Arc::clone(&waiting.memory);
        self.plugger.request(self.hotplug.mapped(), waiting.bytes);
        Ok(())
    }

    /// How much is requested, and plugged.
    pub(super) fn sizes(&self) -> Sizes {
        self.plugger.sizes()
    }
}
