//! The entries of a guest, decoded as Linux decodes them (arch/x86/kernel/cpu/{topology,amd,cacheinfo}.c of 6.1).

use std::collections::BTreeSet;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use super::features::{ARAT, HYPERVISOR, TSC_DEADLINE};
use super::for_vcpu;
use super::topology::{CMP_LEGACY, HTT};

const COUNTS: [u8; 6] = [1, 2, 3, 4, 8, 32];
const SUBTYPES: [&str; 3] = ["end", "thread", "core"];

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// A cache of leaf 4 or 0x8000001d as the host has it: shared by `sharing` threads.
fn cache(function: u32, index: u32, kind: u32, level: u32, sharing: u32) -> kvm_cpuid_entry2 {
    let eax = 7 << 26 | (sharing - 1) << 14 | 1 << 8 | level << 5 | kind;
    entry(function, index, [eax, 0x03c0_003f, 0x3f, 0])
}

/// What KVM supports on a host with these CPUs, by name. The topology leaves are those of a host CPU with APIC id
/// 13, unless `kvm_reports_none`.
fn hosts() -> Vec<(&'static str, Vec<kvm_cpuid_entry2>)> {
    let intel = |last_leaf: u32| {
        let mut entries = vec![
            entry(0, 0, [last_leaf, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, 0, [0x806f8, 13 << 24 | 16 << 16 | 0x0800, u32::MAX, u32::MAX]),
        ];
        let caches = [(1, 1, 2), (2, 1, 2), (3, 2, 2), (3, 3, 16)];
        let caches = (0..).zip(caches);
        entries.extend(caches.map(|(index, (kind, level, sharing))| cache(4, index, kind, level, sharing)));
        entries.extend([
            entry(4, 4, [0; 4]),
            entry(7, 0, [u32::MAX; 4]),
            entry(7, 1, [u32::MAX; 4]),
        ]);
        entries.extend([
            entry(0xa, 0, [u32::MAX; 4]),
            entry(0x8000_0008, 0, [0x3039, 0, 0, 0]),
        ]);
        entries
    };
    let amd = |last_leaf: u32| {
        vec![
            entry(0, 0, [last_leaf, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            entry(1, 0, [0xa20f10, 13 << 24 | 16 << 16 | 0x0800, u32::MAX, u32::MAX]),
            entry(7, 0, [u32::MAX; 4]),
            entry(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x4 << 12 | 15, 0]),
            entry(0x8000_000a, 0, [u32::MAX; 4]),
            entry(0x8000_0022, 0, [u32::MAX; 4]),
        ]
    };
    let amd_caches = || {
        let caches = (0..).zip([(1, 1, 2), (2, 1, 2), (3, 2, 2), (3, 3, 16)]);
        let mut entries: Vec<_> = caches
            .map(|(index, (kind, level, sharing))| cache(0x8000_001d, index, kind, level, sharing))
            .collect();
        entries.push(entry(0x8000_001e, 0, [13, 1 << 8 | 6, 0, 0]));
        entries
    };
    let host_levels = |function| {
        [
            entry(function, 0, [1, 2, 0x100, 13]),
            entry(function, 1, [4, 16, 0x201, 13]),
        ]
    };
    let no_levels = |function| [entry(function, 0, [0; 4])];
    vec![
        (
            "Intel, topology of the host",
            [intel(0x1f), host_levels(0xb).into(), host_levels(0x1f).into()].concat(),
        ),
        (
            "Intel, no topology",
            [intel(0x1f), no_levels(0xb).into(), no_levels(0x1f).into()].concat(),
        ),
        (
            "Intel without leaf 0x1f",
            [intel(0x16), no_levels(0xb).into()].concat(),
        ),
        ("Intel without leaf 0xb", intel(0xa)),
        (
            "AMD, topology of the host",
            [
                amd(0x10),
                amd_caches(),
                host_levels(0xb).into(),
                host_levels(0x8000_0026).into(),
            ]
            .concat(),
        ),
        (
            "AMD, no topology",
            [amd(0x10), amd_caches(), no_levels(0xb).into()].concat(),
        ),
        ("AMD before leaf 0xb", [amd(0xd), amd_caches()].concat()),
        ("AMD without any topology leaf", amd(0x7)),
    ]
}

/// A guest's CPUs as Linux sees them.
struct Guest(Vec<Vec<kvm_cpuid_entry2>>);

impl Guest {
    fn new(supported: &[kvm_cpuid_entry2], vcpus: u8) -> Self {
        let supported = CpuId::from_entries(supported).unwrap();
        let cpus = (0..vcpus).map(|index| for_vcpu(&supported, index, vcpus).unwrap().as_slice().to_vec());
        Self(cpus.collect())
    }

    fn leaf(&self, cpu: usize, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.0[cpu]
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
    }

    fn apic_id(&self, cpu: usize) -> u32 {
        self.leaf(cpu, 1, 0).unwrap().ebx >> 24
    }

    fn is_amd(&self) -> bool {
        self.leaf(0, 0, 0).unwrap().ebx == 0x6874_7541
    }

    /// Package, core, cores per package and threads per core of `cpu`.
    fn place(&self, cpu: usize) -> (u32, u32, u32, u32) {
        let valid = |function: &&u32| {
            self.leaf(cpu, **function, 0)
                .is_some_and(|leaf| leaf.ebx != 0 && leaf.ecx >> 8 == 1)
        };
        if let Some(function) = [0x1f, 0xb].iter().find(valid) {
            return self.place_by_levels(cpu, *function);
        }
        let (leaf_1, id) = (self.leaf(cpu, 1, 0).unwrap(), self.apic_id(cpu));
        let logical = if leaf_1.edx & HTT == 0 {
            1
        } else {
            leaf_1.ebx >> 16 & 0xff
        };
        if self.is_amd() {
            let leaf = self.leaf(cpu, 0x8000_0008, 0).unwrap();
            let (cores, bits) = ((leaf.ecx & 0xff) + 1, leaf.ecx >> 12 & 0xf);
            let legacy = self.leaf(cpu, 0x8000_0001, 0).unwrap().ecx & CMP_LEGACY != 0;
            let threads = if legacy { 1 } else { logical };
            (id >> bits, id & ((1 << bits) - 1), cores, threads)
        } else {
            let cores = (self.leaf(cpu, 4, 0).unwrap().eax >> 26) + 1;
            let bits = order(logical);
            (id >> bits, id & ((1 << bits) - 1), cores, logical / cores)
        }
    }

    fn place_by_levels(&self, cpu: usize, function: u32) -> (u32, u32, u32, u32) {
        let level = |index| {
            let leaf = self.leaf(cpu, function, index)?;
            Some((SUBTYPES[leaf.ecx as usize >> 8], leaf))
        };
        let Some((("thread", thread), ("core", core))) = level(0).zip(level(1)) else {
            panic!("leaf {function:#x} of CPU {cpu} lacks a level");
        };
        assert!(level(2).is_none(), "KVM ends the list");
        assert_eq!((thread.edx, core.edx), (self.apic_id(cpu), self.apic_id(cpu)));
        let number = (core.edx & ((1 << core.eax) - 1)) >> thread.eax;
        (core.edx >> core.eax, number, core.ebx / thread.ebx, thread.ebx)
    }

    /// The level of each cache of `cpu`, and the CPUs that share it.
    fn caches(&self, cpu: usize) -> Vec<(u32, BTreeSet<usize>)> {
        let function = if self.is_amd() { 0x8000_001d } else { 4 };
        let caches = (0..).map_while(|index| {
            self.leaf(cpu, function, index)
                .filter(|leaf| leaf.eax & 0x1f != 0)
        });
        let caches = caches.map(|leaf| {
            let (level, sharing) = (leaf.eax >> 5 & 7, (leaf.eax >> 14 & 0xfff) + 1);
            // Linux forms AMD's groups below L3 by division, all others by the bits of the APIC id.
            let group = |cpu| {
                if self.is_amd() && level != 3 {
                    self.apic_id(cpu) / sharing
                } else {
                    self.apic_id(cpu) >> order(sharing)
                }
            };
            let sharers = (0..self.0.len()).filter(|other| group(*other) == group(cpu));
            (level, sharers.collect())
        });
        caches.collect()
    }
}

/// get_count_order: the number of bits that `count` different numbers need.
fn order(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[test]
fn every_vcpu_is_a_core_of_one_package() {
    for (host, supported) in hosts() {
        for vcpus in COUNTS {
            let guest = Guest::new(&supported, vcpus);
            for cpu in 0..usize::from(vcpus) {
                let core = u32::try_from(cpu).unwrap();
                let expected = (0, core, u32::from(vcpus), 1);
                assert_eq!(guest.place(cpu), expected, "{host}, CPU {cpu} of {vcpus}");
            }
        }
    }
}

#[test]
fn the_first_two_cache_levels_are_private_and_the_third_is_shared_by_all() {
    for (host, supported) in hosts() {
        for vcpus in COUNTS {
            let guest = Guest::new(&supported, vcpus);
            for cpu in 0..usize::from(vcpus) {
                let caches = guest.caches(cpu);
                let described = supported
                    .iter()
                    .any(|entry| [4, 0x8000_001d].contains(&entry.function));
                assert_eq!(caches.len(), if described { 4 } else { 0 }, "{host}");
                for (level, sharers) in caches {
                    let expected = if level == 3 {
                        (0..usize::from(vcpus)).collect()
                    } else {
                        [cpu].into()
                    };
                    assert_eq!(sharers, expected, "{host}, L{level} of CPU {cpu} of {vcpus}");
                }
            }
        }
    }
}

#[test]
fn amds_leaves_agree_with_the_others() {
    for (host, supported) in hosts() {
        let guest = Guest::new(&supported, 6);
        let core = guest.leaf(5, 0x8000_0008, 0).unwrap().ecx;
        if !guest.is_amd() {
            assert_eq!(core, 0, "{host}: reserved");
            continue;
        }
        assert_eq!(core, 3 << 12 | 5, "{host}");
        if let Some(leaf) = guest.leaf(5, 0x8000_001e, 0) {
            assert_eq!(
                (leaf.eax, leaf.ebx, leaf.ecx),
                (5, 5, 0),
                "{host}: id, core, node"
            );
        }
        assert!(guest.leaf(5, 0x8000_0026, 0).is_none(), "{host}");
    }
}

#[test]
fn every_guest_has_the_deadline_timer_and_the_hypervisor_bit() {
    for (host, supported) in hosts() {
        let guest = Guest::new(&supported, 1);
        let leaf_1 = guest.leaf(0, 1, 0).unwrap();
        assert_eq!(
            leaf_1.ecx & (TSC_DEADLINE | HYPERVISOR),
            TSC_DEADLINE | HYPERVISOR,
            "{host}"
        );
        assert_eq!(leaf_1.ebx & 0xffff, 0x0800, "{host}: CLFLUSH line size");
        assert_eq!(guest.leaf(0, 6, 0).unwrap().eax & ARAT, ARAT, "{host}");
    }
}

#[test]
fn kvm_accepts_the_entries() {
    let Some(vm) = crate::kvm::tests::vm() else {
        return;
    };
    let supported = vm.supported_cpuid().unwrap();
    for index in 0..4 {
        let vcpu = vm.create_vcpu(index).unwrap();
        vcpu.set_cpuid2(&for_vcpu(&supported, index, 4).unwrap()).unwrap();
        let accepted = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let leaf_1 = accepted
            .as_slice()
            .iter()
            .find(|entry| entry.function == 1)
            .unwrap();
        assert_eq!(leaf_1.ebx >> 16, u32::from(index) << 8 | 4);
    }
}
