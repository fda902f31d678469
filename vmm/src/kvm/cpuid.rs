//! What CPUID tells a guest: what KVM supports, with the guest's own topology and the timer that needs no
//! calibration. Pure.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: the local APIC timer takes a TSC value, so nothing has to be calibrated (there is no PIT to do it by).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer never stops, so no broadcast timer is looked for.
const ARAT: u32 = 1 << 2;

/// CPUID of vCPU `index` of `vcpus`, from what KVM supports.
///
/// # Errors
/// Where there are more entries than KVM takes.
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
    CpuId::from_entries(&entries).map_err(|error| super::Error::Cpuid(format!("{error:?}")))
}

/// One core a vCPU, all in one package.
fn adapt(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32) {
    let shift = vcpus.next_power_of_two().trailing_zeros();
    match entry.function {
        1 => {
            // EBX: APIC id, logical processors of the package, and the cache line's size as it is.
            entry.ebx = index << 24 | vcpus << 16 | entry.ebx & 0xffff;
            entry.ecx |= TSC_DEADLINE | HYPERVISOR;
            entry.edx = if vcpus > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        }
        // Caches (Intel): each core its own; EAX 31:26 cores of the package, 25:14 threads that share the cache.
        4 => entry.eax = entry.eax & 0x3fff | (vcpus - 1).min(63) << 26,
        6 => entry.eax |= ARAT,
        // Extended topology: level 0 threads of a core, level 1 cores of the package.
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
        // Cores of the package less one, width of a core's APIC id (AMD).
        0x8000_0008 => entry.ecx = shift << 12 | (vcpus - 1),
        // Caches (AMD): as in leaf 4.
        0x8000_001d => entry.eax &= 0x3fff,
        // Extended APIC id; one thread a core; one node (AMD).
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

    fn made(index: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(4, 0), entry(0xb, 0), entry(0xb, 1)]).unwrap();
        for_vcpu(&supported, index, vcpus).unwrap().as_slice().to_vec()
    }

    #[test]
    fn every_guest_has_the_timer_and_knows_that_it_is_one() {
        let made = made(0, 1);
        assert_eq!(
            made[0].ecx & (TSC_DEADLINE | HYPERVISOR),
            TSC_DEADLINE | HYPERVISOR
        );
        assert_eq!(made[0].edx & HTT, 0);
        let power = made.iter().find(|entry| entry.function == 6).unwrap();
        assert_eq!(power.eax & ARAT, ARAT);
    }

    #[test]
    fn each_vcpu_has_its_id_in_every_leaf_that_tells_it() {
        let made = made(3, 6);
        assert_eq!(made[0].ebx, 3 << 24 | 6 << 16 | 0x0800);
        assert_eq!(made[1].eax >> 26, 5);
        assert_eq!(
            (made[2].eax, made[2].ebx, made[2].ecx, made[2].edx),
            (0, 1, 0x100, 3)
        );
        assert_eq!(
            (made[3].eax, made[3].ebx, made[3].ecx, made[3].edx),
            (3, 6, 0x201, 3)
        );
    }

    #[test]
    fn kvm_takes_it() {
        let Some(vm) = super::super::tests::vm() else {
            return;
        };
        let cpuid = for_vcpu(&vm.supported_cpuid().unwrap(), 0, 1).unwrap();
        vm.vcpu(0).unwrap().set_cpuid2(&cpuid).unwrap();
    }
}
