//! How large a pod's VM is: pure functions from limits, configuration and host to numbers of MiB and vCPUs.
//! `sandbox` calls them: before the boot ([`VmSize::plan`]), and whenever a container comes or its limits
//! change ([`PodSize`]). Never asks the guest or the VMM for anything.
//!
//! ```text
//!            pod with a limit                        pod without one
//! memory     the limit and what the guest needs      memory_mib, more on demand up to max_memory_percent
//! vCPUs      as many as the quota needs              as many as the host has CPUs, up to max_vcpus
//! ```

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
    /// The most vCPUs.
    pub max_vcpus: u8,
}

impl VmSize {
    /// The size of the VM of a pod with `limits`.
    #[must_use]
    pub fn plan(limits: &Limits, config: &Config, host: Host) -> Self {
        let limits = limits.on(host);
        let boot_mib = limits.memory().map_or(config.memory_mib, vm_memory_mib);
        let boot_mib = boot_mib.clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB);
        let share = u64::from(host.memory_mib) * u64::from(config.max_memory_percent) / 100;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let pluggable = share.saturating_sub(boot_mib).min(MAX_PLUGGED_MIB);
        let vcpus = limits.cpus().unwrap_or(config.vcpus).clamp(1, MAX_VCPUS);
        let configured = config
            .max_vcpus
            .unwrap_or_else(|| host.cpus.clamp(1, DEFAULT_MAX_VCPUS));
        Self {
            boot_mib,
            max_mib: boot_mib + pluggable / MEMORY_SECTION_MIB * MEMORY_SECTION_MIB,
            vcpus,
            max_vcpus: configured.max(vcpus),
        }
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
