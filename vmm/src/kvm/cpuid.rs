//! The CPUID entries of a vCPU: those that KVM supports, with the guest's own topology and with the TSC
//! deadline timer. Pure; called when the vCPUs are created.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: the local APIC timer has TSC deadline mode, which needs no calibration (there is no PIT to
/// calibrate by).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer never stops, so the kernel does not look for a broadcast timer.
const ARAT: u32 = 1 << 2;

/// The entries of vCPU `index` of `vcpus`, derived from those that KVM supports.
///
/// # Errors
/// [`super::Error::TooManyEntries`] if KVM does not accept that many.
pub fn for_vcpu(supported: &CpuId, index: u8, vcpus: u8) -> Result<CpuId, super::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let mut has_power_leaf = false;
    for entry in &mut entries {
        has_power_leaf |= entry.function == 6;
        adapt(entry, u32::from(index), u32::from(vcpus));
    }
    if !has_power_leaf {
        entries.push(kvm_cpuid_entry2 {
            function: 6,
            eax: ARAT,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries).map_err(|error| super::Error::TooManyEntries {
        action: "setting CPUID",
        reason: format!("{error:?}"),
    })
}

/// Changes the leaves that describe topology and timer: each vCPU is a core with one thread, all cores are in
/// one package.
fn adapt(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32) {
    let shift = vcpus.next_power_of_two().trailing_zeros();
    match entry.function {
        1 => {
            // EBX: APIC id, logical processors in the package; CLFLUSH line size unchanged.
            entry.ebx = index << 24 | vcpus << 16 | entry.ebx & 0xffff;
            entry.ecx |= TSC_DEADLINE | HYPERVISOR;
            entry.edx = if vcpus > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        }
        // Caches (Intel), each private to a core. EAX 31:26: cores in the package less one; 25:14: threads
        // that share the cache less one.
        4 => entry.eax = entry.eax & 0x3fff | (vcpus - 1).min(63) << 26,
        6 => entry.eax |= ARAT,
        // Extended topology: level 0 has the threads of a core, level 1 the cores of the package.
        0xb | 0x1f => {
            let (level_shift, level_count, level_type) = match entry.index {
                0 => (0, 1, 1),
                1 => (shift, vcpus, 2),
                _ => (0, 0, 0),
            };
            entry.eax = level_shift;
            entry.ebx = level_count;
            entry.ecx = level_type << 8 | entry.index;
            entry.edx = index;
        }
        // AMD: cores in the package less one, width of the APIC id's core field.
        0x8000_0008 => entry.ecx = shift << 12 | (vcpus - 1),
        // AMD: caches, as in leaf 4.
        0x8000_001d => entry.eax &= 0x3fff,
        // AMD: extended APIC id, one thread per core, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: 0x0fff_0800,
            ..Default::default()
        }
    }

    fn entries(index: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(4, 0), entry(0xb, 0), entry(0xb, 1)]).unwrap();
        for_vcpu(&supported, index, vcpus).unwrap().as_slice().to_vec()
    }

    #[test]
    fn every_guest_has_the_deadline_timer_and_the_hypervisor_bit() {
        let entries = entries(0, 1);
        assert_eq!(
            entries[0].ecx & (TSC_DEADLINE | HYPERVISOR),
            TSC_DEADLINE | HYPERVISOR
        );
        assert_eq!(entries[0].edx & HTT, 0);
        let power = entries.iter().find(|entry| entry.function == 6).unwrap();
        assert_eq!(power.eax & ARAT, ARAT);
    }

    #[test]
    fn each_vcpu_has_its_own_id_in_every_topology_leaf() {
        let entries = entries(3, 6);
        assert_eq!(entries[0].ebx, 3 << 24 | 6 << 16 | 0x0800);
        assert_eq!(entries[1].eax >> 26, 5);
        assert_eq!(
            (entries[2].eax, entries[2].ebx, entries[2].ecx, entries[2].edx),
            (0, 1, 0x100, 3)
        );
        assert_eq!(
            (entries[3].eax, entries[3].ebx, entries[3].ecx, entries[3].edx),
            (3, 6, 0x201, 3)
        );
    }

    #[test]
    fn kvm_accepts_the_entries() {
        let Some(vm) = super::super::tests::vm() else {
            return;
        };
        let cpuid = for_vcpu(&vm.supported_cpuid().unwrap(), 0, 1).unwrap();
        vm.create_vcpu(0).unwrap().set_cpuid2(&cpuid).unwrap();
    }
}
