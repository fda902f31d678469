//! The CPUID entries of a vCPU: those that KVM supports, without the features that a guest must not see
//! ([`features`]) and with the guest's own topology ([`topology`]). Pure; called when the vCPUs are created.

mod features;
#[cfg(test)]
mod tests;
mod topology;

use core::arch::x86_64::CpuidResult;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use self::topology::Topology;

/// The leaf of the L1 caches and TLBs of AMD's processors.
pub const AMD_L1_CACHES: u32 = 0x8000_0005;

/// Fills the leaf [`AMD_L1_CACHES`] with that of the `host` if KVM returns zeros for it, as it does before Linux
/// 6.2. On a processor without leaf 0x8000001d, Linux finds no cache of any level if one is missing.
pub fn complete_l1_caches(entries: &mut [kvm_cpuid_entry2], host: CpuidResult) {
    for entry in entries {
        if entry.function == AMD_L1_CACHES && [entry.eax, entry.ebx, entry.ecx, entry.edx] == [0; 4] {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
        }
    }
}

/// The entries of vCPU `index` of a VM with `vcpus` vCPUs, those that are offline at boot included; derived
/// from the entries that KVM supports.
///
/// # Errors
/// [`super::Error::TooManyEntries`] if KVM does not accept that many.
pub fn for_vcpu(supported: &CpuId, index: u8, vcpus: u8) -> Result<CpuId, super::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    features::adapt(&mut entries);
    let topology = Topology {
        apic_id: u32::from(index),
        cores: u32::from(vcpus.max(1)),
    };
    topology.describe(&mut entries);
    CpuId::from_entries(&entries).map_err(|error| super::Error::TooManyEntries {
        action: "setting CPUID",
        reason: format!("{error:?}"),
    })
}
