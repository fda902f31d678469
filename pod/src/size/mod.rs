//! How large a pod's VM is: pure functions from limits, configuration and host to numbers of MiB and vCPUs.
//! `sandbox` calls them: before the boot ([`VmSize::plan`]), and whenever a container comes or its limits
//! change ([`PodSize`]). Never asks the guest or the VMM for anything.
//!
//! ```text
//!            pod with a limit                        pod without one
//! memory     the limit and what the guest needs      memory_mib, more on demand up to max_memory_percent
//! vCPUs      as many as the quota needs              as many as the host has CPUs, up to max_vcpus
//! ```
//!
//! A guest that continues from a template has less at first ([`VmSize::in_template`]): the rest is added before a
//! container starts.

mod hints;
mod host;
mod limits;
mod pod_size;

pub use hints::SizeHints;
pub use host::Host;
pub use limits::Limits;
pub use pod_size::{PodSize, Target, TooLarge};

use nacre_protocol::config::{Config, DEFAULT_MAX_VCPUS, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use nacre_protocol::control::{MAX_PLUGGED_MIB, MEMORY_SECTION_MIB};

/// What the guest's kernel and agent need besides the containers, MiB.
const GUEST_MIB: u64 = 128;
/// Most memory that is added to a guest that continues from a template, before its first container starts, MiB. A VM
/// that needs more boots with it.
const MAX_ADDED_MIB: u32 = 16 * 1024;
/// The guest's kernel describes each page of 4 KiB by 64 bytes: one part in 64 of all memory, which is one in
/// 63 of the rest.
const PAGES_PER_DESCRIPTION: u64 = 63;

/// The size of a VM: what it boots with, and the most that it can have while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// Memory at boot, MiB.
    pub boot_mib: u32,
    /// The most memory, MiB: `boot_mib` and a multiple of [`MEMORY_SECTION_MIB`] that can be plugged in.
    pub max_mib: u32,
    /// vCPUs that are online at boot.
    pub vcpus: u8,
    /// The most vCPUs that come online, as many if no limit says less.
    pub most_vcpus: u8,
    /// vCPUs that exist: in a template as many as any pod may have.
    pub max_vcpus: u8,
}

impl VmSize {
    /// The size of the VM of a pod with `limits`.
    #[must_use]
    pub fn plan(limits: &Limits, config: &Config, host: Host) -> Self {
        let limits = limits.on(host);
        let boot_mib = limits.memory().map_or(config.memory_mib, vm_memory_mib);
        let boot_mib = boot_mib.clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB);
        // Beyond the host's CPUs a quota limits nothing.
        let useful = max_vcpus(config, host.cpus).max(host.cpus);
        let vcpus = limits
            .cpus()
            .map_or(config.vcpus, |cpus| cpus.min(useful))
            .clamp(1, MAX_VCPUS);
        let max_vcpus = max_vcpus(config, host.cpus).max(vcpus);
        Self {
            boot_mib,
            max_mib: boot_mib + pluggable_mib(boot_mib, config, host),
            vcpus,
            most_vcpus: max_vcpus,
            max_vcpus,
        }
    }

    /// This size, if the guest continues from a template, with what the template's guest has: as few sizes as
    /// possible, so that most pods share one. Memory is a multiple of [`MEMORY_SECTION_MIB`] up to that of a pod
    /// without a limit. None if more than [`MAX_ADDED_MIB`] would be missing.
    #[must_use]
    pub fn in_template(&self, config: &Config, host: Host) -> Option<Self> {
        let boot_mib = self
            .boot_mib
            .next_multiple_of(MEMORY_SECTION_MIB)
            .min(config.memory_mib);
        let missing = self
            .boot_mib
            .saturating_sub(boot_mib)
            .next_multiple_of(MEMORY_SECTION_MIB);
        let usual_max = max_vcpus(config, host.all_cpus).max(config.vcpus);
        (missing <= MAX_ADDED_MIB).then(|| Self {
            boot_mib,
            max_mib: boot_mib + pluggable_mib(boot_mib, config, host).max(missing),
            vcpus: self.vcpus.min(config.vcpus),
            most_vcpus: self.most_vcpus,
            // One further kind for all pods with more.
            max_vcpus: if self.max_vcpus > usual_max {
                MAX_VCPUS
            } else {
                usual_max
            },
        })
    }

    /// The most memory that can be plugged in besides that at boot, MiB.
    #[must_use]
    pub fn pluggable_mib(&self) -> u32 {
        self.besides_boot(self.max_mib)
    }

    /// What a VM of `mib` has besides its memory at boot, MiB.
    #[must_use]
    pub fn besides_boot(&self, mib: u32) -> u32 {
        mib.saturating_sub(self.boot_mib)
    }

    /// The size, in steps of [`MEMORY_SECTION_MIB`] from that at boot, that has `mib` if the VM can have it.
    #[must_use]
    pub fn at_least(&self, mib: u32) -> u32 {
        let plugged = mib
            .saturating_sub(self.boot_mib)
            .div_ceil(MEMORY_SECTION_MIB)
            .saturating_mul(MEMORY_SECTION_MIB);
        self.boot_mib.saturating_add(plugged).min(self.max_mib)
    }
}

/// What can be plugged into a VM that has `boot_mib` at boot, MiB.
fn pluggable_mib(boot_mib: u32, config: &Config, host: Host) -> u32 {
    let share = u64::from(host.memory_mib) * u64::from(config.max_memory_percent) / 100;
    let share = u32::try_from(share).unwrap_or(u32::MAX);
    let pluggable = share.saturating_sub(boot_mib).min(MAX_PLUGGED_MIB);
    pluggable / MEMORY_SECTION_MIB * MEMORY_SECTION_MIB
}

/// The most vCPUs of a VM without a limit that may run on `cpus` of the host's CPUs.
fn max_vcpus(config: &Config, cpus: u8) -> u8 {
    config
        .max_vcpus
        .unwrap_or_else(|| cpus.clamp(1, DEFAULT_MAX_VCPUS))
}

/// The memory of a VM whose containers may use `bytes`, MiB.
fn vm_memory_mib(bytes: u64) -> u32 {
    let mib = bytes.div_ceil(1 << 20);
    let all = mib
        .saturating_add(mib / PAGES_PER_DESCRIPTION)
        .saturating_add(GUEST_MIB);
    u32::try_from(all).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
