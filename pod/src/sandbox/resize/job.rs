//! One change of the VM's size, in the order that never takes from a container what it may use: the VM grows,
//! the limits change, the VM shrinks. Runs in a task of its own and holds no state of the sandbox.

use nacre_protocol::agent::PluggedMemory;

use crate::error::{Error, StepFailed};
use crate::guest::Guest;
use crate::sandbox::failed;
use crate::size::{Target, VmSize};
use crate::vm::MemoryControl;

const STEP: &str = "resize VM";

/// What the VM has been given: its memory is `memory_mib`, of which it may not have plugged all yet.
pub type Given = Target;

/// A change of the VM's size, perhaps with one of a container's limits.
pub struct Job {
    pub guest: Guest,
    pub memory: MemoryControl,
    /// The VM's size at boot, and at most.
    pub vm: VmSize,
    /// What the VM has been given so far.
    pub from: Given,
    /// What it is to have.
    pub to: Given,
    /// The guest must confirm the size, even if the VM has been given it before.
    pub must_confirm: bool,
    /// Limits to change on the way.
    pub limits: Option<NewLimits>,
}

/// New limits of a container.
pub struct NewLimits {
    pub container: String,
    /// `linux.resources`, JSON.
    pub resources: Vec<u8>,
}

/// What the guest is told of its memory.
pub fn plugged_memory(vm: &VmSize, given: &Given) -> PluggedMemory {
    PluggedMemory {
        mib: vm.besides_boot(given.memory_mib),
        most_mib: vm.besides_boot(given.ceiling_mib),
        ..Default::default()
    }
}

impl Job {
    /// Makes the change. Returns what the VM has been given then, also if it failed.
    pub async fn run(self) -> (Given, Result<(), Error>) {
        let mut given = self.from;
        let result = self.steps(&mut given).await;
        (given, result)
    }

    async fn steps(&self, given: &mut Given) -> Result<(), Error> {
        let grown = Given {
            memory_mib: self.from.memory_mib.max(self.to.memory_mib),
            vcpus: self.from.vcpus.max(self.to.vcpus),
            ceiling_mib: self.to.ceiling_mib,
        };
        if grown.memory_mib > self.from.memory_mib {
            self.plug(grown.memory_mib).await?;
        }
        if grown != self.from || self.must_confirm {
            *given = grown;
            self.tell(grown).await?;
        }
        if let Some(limits) = &self.limits {
            let (id, resources) = (&limits.container, limits.resources.clone());
            let updated = self.guest.update(id, resources).await;
            updated.map_err(|error| error.into_error("update limits"))?;
        }
        if self.to != grown {
            *given = self.to;
            self.tell(self.to).await?;
        }
        if self.to.memory_mib < grown.memory_mib {
            self.plug(self.to.memory_mib).await?;
        }
        Ok(())
    }

    /// Asks the VMM for a VM with `mib` of memory.
    async fn plug(&self, mib: u32) -> Result<(), StepFailed> {
        let plugged = self.vm.besides_boot(mib);
        let done = self.memory.plug(plugged, self.vm.pluggable_mib()).await;
        done.map_err(|error| failed(STEP, format_args!("memory of {mib} MiB: {error}"), None))
    }

    /// Tells the guest its size. It brings vCPUs online or offline, finds the device that plugs memory if it
    /// is new, and waits for its memory.
    async fn tell(&self, size: Given) -> Result<(), Error> {
        let memory = plugged_memory(&self.vm, &size);
        let wanted_mib = memory.mib;
        let has = self.guest.resize_vm(size.vcpus, memory).await;
        let has = has.map_err(|error| error.into_error(STEP))?;
        if has.vcpus < size.vcpus.into() {
            let reason = format!("{} vCPUs are online instead of {}", has.vcpus, size.vcpus);
            return Err(failed(STEP, reason, None).into());
        }
        // Up to one part in 64 of plugged memory describes its own pages.
        if has.plugged_mib < wanted_mib - wanted_mib / 64 {
            let reason = format!(
                "the guest has plugged in {} MiB of memory instead of {wanted_mib}",
                has.plugged_mib
            );
            return Err(failed(STEP, reason, None).into());
        }
        Ok(())
    }
}
