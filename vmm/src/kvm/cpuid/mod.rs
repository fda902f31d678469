//! The CPUID entries of a vCPU: those that KVM supports, without the features that a guest must not see
//! ([`features`]) and with the guest's own topology ([`topology`]). Pure; called when the vCPUs are created.

mod features;
#[cfg(test)]
mod tests;
mod topology;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use self::topology::Topology;

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
