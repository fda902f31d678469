//! The size that a pod needs now, as its containers come and their limits change. The sandbox owns one
//! [`PodSize`] per pod, asks it for a [`Target`] after each change, and makes the VM that large. Pure.

use std::collections::BTreeMap;

use super::limits::vcpus;
use super::{Host, Limits, VmSize, vm_memory_mib};

/// What a VM should have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Memory that it must have, MiB.
    pub memory_mib: u32,
    /// Memory that it may grow to if its guest needs it, MiB.
    pub ceiling_mib: u32,
    /// vCPUs that are online.
    pub vcpus: u8,
}

/// A limit that the VM can't fulfil.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// More memory than the VM can have.
    #[error(
        "linux.resources.memory.limit: {bytes} bytes need a VM of {needed_mib} MiB, but that of this pod can \
         have at most {max_mib} MiB: max_memory_percent in config.toml decided it when the pod was created"
    )]
    Memory {
        /// The limit.
        bytes: u64,
        /// The VM that it needs, MiB.
        needed_mib: u32,
        /// The most that the VM can have, MiB.
        max_mib: u32,
    },
    /// More CPUs than the VM can have, although the host has them.
    #[error(
        "linux.resources.cpu.quota: {needed} CPUs, but the VM of this pod can have at most {max}: max_vcpus in \
         config.toml decided it when the pod was created"
    )]
    Cpus {
        /// The vCPUs that the limit needs.
        needed: u8,
        /// The most that the VM can have.
        max: u8,
    },
}

/// A pod's limits, and the VM that must fulfil them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSize {
    vm: VmSize,
    host: Host,
    /// What the pod's creator says that all containers need together.
    pod: Limits,
    members: BTreeMap<String, Limits>,
}

impl PodSize {
    /// A pod without containers, whose creator asks for `pod`.
    #[must_use]
    pub fn new(vm: VmSize, pod: Limits, host: Host) -> Self {
        Self {
            vm,
            host,
            pod,
            members: BTreeMap::new(),
        }
    }

    /// The VM's size at boot and at most.
    #[must_use]
    pub fn vm(&self) -> &VmSize {
        &self.vm
    }

    /// The limits of container `id`.
    #[must_use]
    pub fn limits(&self, id: &str) -> Limits {
        self.members.get(id).copied().unwrap_or_default()
    }

    /// Adds container `id`, or changes its limits.
    ///
    /// # Errors
    /// [`TooLarge`] if the VM can't fulfil its limits; nothing is changed then.
    pub fn set(&mut self, id: &str, limits: Limits) -> Result<(), TooLarge> {
        self.check(&limits)?;
        self.members.insert(id.to_owned(), limits);
        Ok(())
    }

    /// Changes the limits of the whole pod, without those of its containers.
    ///
    /// # Errors
    /// As [`PodSize::set`].
    pub fn set_pod(&mut self, limits: Limits) -> Result<(), TooLarge> {
        self.check(&limits)?;
        self.pod = limits;
        Ok(())
    }

    /// The sum of the containers' limits is from now on all that the pod needs: its creator's figure is out
    /// of date, as one of them was changed.
    pub fn forget_pod(&mut self) {
        self.pod = Limits::default();
    }

    /// Removes container `id`.
    pub fn remove(&mut self, id: &str) {
        self.members.remove(id);
    }

    fn check(&self, limits: &Limits) -> Result<(), TooLarge> {
        let limits = limits.on(self.host);
        if let Some(bytes) = limits.memory() {
            let (needed_mib, max_mib) = (vm_memory_mib(bytes), self.vm.max_mib);
            if needed_mib > max_mib {
                return Err(TooLarge::Memory {
                    bytes,
                    needed_mib,
                    max_mib,
                });
            }
        }
        // Beyond the host's CPUs a quota limits nothing, in a VM as little as without one.
        let (needed, max) = (limits.cpus().unwrap_or(0), self.vm.most_vcpus);
        if needed > max && self.host.cpus > max {
            return Err(TooLarge::Cpus { needed, max });
        }
        Ok(())
    }

    /// What the VM should have now.
    #[must_use]
    pub fn target(&self) -> Target {
        let memory = self.together(Limits::memory);
        let needed = memory.at_least.map_or(self.vm.boot_mib, vm_memory_mib);
        let memory_mib = self.vm.at_least(needed);
        let cpus = self.together(Limits::millicpus);
        let limited = vcpus(cpus.at_least.unwrap_or(0));
        Target {
            memory_mib,
            ceiling_mib: if memory.is_limited {
                memory_mib
            } else {
                self.vm.max_mib
            },
            vcpus: if cpus.is_limited { limited } else { u8::MAX }.min(self.vm.most_vcpus),
        }
    }

    /// Adds up one of the limits. The pod's own figure counts if it is more: containers may be missing yet.
    fn together(&self, limit: impl Fn(&Limits) -> Option<u64>) -> Together {
        let limit = |limits: &Limits| limit(&limits.on(self.host));
        let pod = limit(&self.pod);
        let members = self.members.values().map(&limit);
        let sum = members.clone().flatten().reduce(u64::saturating_add);
        let is_limited = if self.members.is_empty() {
            pod.is_some()
        } else {
            members.clone().all(|limit| limit.is_some())
        };
        Together {
            at_least: sum.max(pod),
            is_limited,
        }
    }
}

/// A limit of all containers together.
struct Together {
    /// What those with a limit may use.
    at_least: Option<u64>,
    /// Whether all have one.
    is_limited: bool,
}
