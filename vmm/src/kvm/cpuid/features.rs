//! Features that every guest has, whatever KVM offers. Pure.

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1, ECX: the local APIC timer has TSC deadline mode, which needs no calibration (there is no PIT to
/// calibrate by).
pub(super) const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
pub(super) const HYPERVISOR: u32 = 1 << 31;
/// Leaf 6, EAX: the APIC timer never stops, so the kernel does not look for a broadcast timer.
pub(super) const ARAT: u32 = 1 << 2;

/// Adds what every guest has.
pub(super) fn adapt(entries: &mut Vec<kvm_cpuid_entry2>) {
    if !entries.iter().any(|entry| entry.function == 6) {
        entries.push(kvm_cpuid_entry2 {
            function: 6,
            ..Default::default()
        });
    }
    for entry in entries {
        match entry.function {
            1 => entry.ecx |= TSC_DEADLINE | HYPERVISOR,
            6 => entry.eax |= ARAT,
            _ => {}
        }
    }
}
