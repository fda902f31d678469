//! The leaves that describe where a vCPU is: one package, in which each vCPU is a core with one thread. Each core
//! has its own L1 and L2 caches, and all share one L3. Pure.
//!
//! KVM_GET_SUPPORTED_CPUID reports the topology of the host CPU on which it was called or, on newer kernels, none.
//! Therefore every leaf is written here, and missing ones are added.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, EDX: more than one logical processor.
pub(super) const HTT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX (AMD): what HTT counts are cores, not threads of one core.
pub(super) const CMP_LEGACY: u32 = 1 << 1;
/// EBX of leaf 0: the start of "AuthenticAMD" and "HygonGenuine".
const AMD_VENDORS: [u32; 2] = [0x6874_7541, 0x6f67_7948];
/// Extended topology: the leaf that every guest has, Intel's newer one with more levels, AMD's.
const EXTENDED: [u32; 3] = [0xb, 0x1f, 0x8000_0026];

/// The place of a vCPU.
pub(super) struct Topology {
    /// Its APIC id, and the number of its core.
    pub(super) apic_id: u32,
    /// The number of cores, at least 1; APIC ids are below.
    pub(super) cores: u32,
}

impl Topology {
    /// Writes the topology into all leaves of `entries` that have a part of it.
    pub(super) fn describe(&self, entries: &mut Vec<kvm_cpuid_entry2>) {
        let leaf_0 = entries.iter().find(|entry| entry.function == 0);
        let (last_leaf, vendor) = leaf_0.map_or((0, 0), |leaf| (leaf.eax, leaf.ebx));
        let amd = AMD_VENDORS.contains(&vendor);
        entries.retain(|entry| !EXTENDED.contains(&entry.function));
        for entry in &mut *entries {
            self.describe_common(entry);
            if amd {
                self.describe_amd(entry);
            }
        }
        // Linux uses 0x1f if it is there, otherwise 0xb. A leaf beyond the last one could not be read.
        for function in [0xb, 0x1f] {
            if function <= last_leaf {
                entries.extend(self.levels(function));
            }
        }
    }

    fn describe_common(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            1 => {
                // EBX: APIC id, logical processors in the package; CLFLUSH line size and brand unchanged.
                entry.ebx = self.apic_id << 24 | self.cores << 16 | entry.ebx & 0xffff;
                set(&mut entry.edx, HTT, self.cores > 1);
            }
            4 => {
                self.describe_cache(entry);
                // EAX 31:26: cores in the package less one.
                if has_cache(entry) {
                    entry.eax |= (self.cores - 1).min(63) << 26;
                }
            }
            _ => {}
        }
    }

    /// AMD's own leaves. Those are reserved on Intel's processors.
    fn describe_amd(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x8000_0001 => set(&mut entry.ecx, CMP_LEGACY, self.cores > 1),
            // ECX: width of the APIC id's core number, cores in the package less one.
            0x8000_0008 => entry.ecx = self.core_bits() << 12 | (self.cores - 1),
            0x8000_001d => self.describe_cache(entry),
            // APIC id; the core's number and its threads less one; one node per package, number 0.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.apic_id, self.apic_id, 0),
            _ => {}
        }
    }

    /// Leaves 4 and 0x8000001d have one subleaf per cache. EAX 25:14 is the number of logical processors that
    /// share it, less one; 7:5 is its level.
    fn describe_cache(&self, entry: &mut kvm_cpuid_entry2) {
        if has_cache(entry) {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { self.cores } else { 1 };
            entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14;
        }
    }

    /// The two levels of leaf `function`: a core has one thread (level type 1), the package has all cores (type
    /// 2). KVM completes the subleaf after them, which ends the list.
    fn levels(&self, function: u32) -> [kvm_cpuid_entry2; 2] {
        [(0, 0, 1, 1), (1, self.core_bits(), self.cores, 2)].map(|(index, shift, processors, level_type)| {
            kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: processors,
                ecx: level_type << 8 | index,
                edx: self.apic_id,
                ..Default::default()
            }
        })
    }

    /// How many bits of an APIC id are the core's number.
    fn core_bits(&self) -> u32 {
        self.cores.next_power_of_two().trailing_zeros()
    }
}

/// Whether a subleaf of leaf 4 or 0x8000001d describes a cache: EAX 4:0 is its type, and 0 ends the list.
fn has_cache(entry: &kvm_cpuid_entry2) -> bool {
    entry.eax & 0x1f != 0
}

fn set(register: &mut u32, bit: u32, value: bool) {
    if value {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}
