//! The entries of a guest, decoded as Linux decodes them (arch/x86/kernel/cpu/{topology,amd,cacheinfo}.c of 6.1).

use core::arch::x86_64::CpuidResult;
use std::collections::BTreeSet;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use super::features::{ARAT, EMPTY, HIDDEN, HYPERVISOR, TSC_DEADLINE};
use super::topology::{CMP_LEGACY, HTT};
use super::{AMD_L1_CACHES, complete_l1_caches, for_vcpu};

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
/// 13, or empty.
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
fn the_hosts_l1_caches_are_used_only_if_kvm_returns_zeros() {
    let host = CpuidResult {
        eax: 1,
        ebx: 2,
        ecx: 3,
        edx: 4,
    };
    for (returned, expected) in [([0; 4], [1, 2, 3, 4]), ([9, 8, 7, 6], [9, 8, 7, 6])] {
        let mut entries = [AMD_L1_CACHES - 1, AMD_L1_CACHES].map(|function| entry(function, 0, returned));
        complete_l1_caches(&mut entries, host);
        assert_eq!(
            entries,
            [
                entry(AMD_L1_CACHES - 1, 0, returned),
                entry(AMD_L1_CACHES, 0, expected)
            ]
        );
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

/// Leaf, subleaf, register and bit of the features that no guest sees, as the manuals number them.
const NEVER: &[(u32, u32, char, u32, &str)] = &[
    (1, 0, 'c', 2, "DTES64"),
    (1, 0, 'c', 4, "DS_CPL"),
    (1, 0, 'c', 5, "VMX"),
    (1, 0, 'c', 15, "PDCM"),
    (1, 0, 'd', 21, "DS"),
    (7, 0, 'b', 2, "SGX"),
    (7, 0, 'b', 25, "processor trace"),
    (7, 0, 'c', 5, "WAITPKG"),
    (7, 0, 'c', 30, "SGX_LC"),
    (7, 0, 'd', 19, "ARCH_LBR"),
    (7, 0, 'd', 22, "AMX_BF16"),
    (7, 0, 'd', 24, "AMX_TILE"),
    (7, 0, 'd', 25, "AMX_INT8"),
    (7, 1, 'a', 8, "ARCH_PERFMON_EXT"),
    (7, 1, 'a', 21, "AMX_FP16"),
    (7, 1, 'd', 8, "AMX_COMPLEX"),
    (0x8000_0001, 0, 'c', 2, "SVM"),
    (0x8000_0001, 0, 'c', 10, "IBS"),
    (0x8000_0001, 0, 'c', 23, "PerfCtrExtCore"),
    (0x8000_0001, 0, 'c', 24, "PerfCtrExtNB"),
    (0x8000_0001, 0, 'c', 27, "PerfTsc"),
    (0x8000_0001, 0, 'c', 28, "PerfCtrExtLLC"),
];

#[test]
fn no_guest_sees_nested_virtualisation_or_performance_monitoring() {
    let registers = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    let all = |function, index| entry(function, index, [u32::MAX; 4]);
    let empty = EMPTY.iter().map(|function| (*function, 0));
    let leaves = NEVER
        .iter()
        .map(|never| (never.0, never.1))
        .chain(empty)
        .chain([(0x14, 1), (0xd, 0)]);
    let leaves: BTreeSet<_> = leaves.collect();
    let supported: Vec<_> = leaves
        .into_iter()
        .map(|(function, index)| all(function, index))
        .collect();
    // More than one core, so that the topology clears no bit.
    let guest = Guest::new(&supported, 3);
    for (function, index, register, bit, name) in NEVER {
        let values = registers(guest.leaf(0, *function, *index).unwrap());
        let value = values["abcd".find(*register).unwrap()];
        assert_eq!(value >> bit & 1, 0, "{name}");
    }
    for function in [0xa, 0x14, 0x23, 0x8000_000a, 0x8000_001b, 0x8000_0022] {
        assert_eq!(
            registers(guest.leaf(0, function, 0).unwrap()),
            [0; 4],
            "{function:#x}"
        );
    }
    assert_eq!(
        registers(guest.leaf(0, 0x14, 1).unwrap()),
        [0; 4],
        "a second subleaf"
    );
    assert_eq!(
        registers(guest.leaf(0, 0xd, 0).unwrap()),
        [u32::MAX; 4],
        "a leaf that is not listed"
    );
    let hidden: u32 = HIDDEN
        .iter()
        .flat_map(|hidden| hidden.bits)
        .map(u32::count_ones)
        .sum();
    assert_eq!(
        hidden as usize,
        NEVER.len(),
        "the two tables list the same features"
    );
}

#[test]
fn kvm_accepts_the_entries() {
    let Some(vm) = crate::kvm::tests::vm() else {
        return;
    };
    let supported = vm.supported_cpuid();
    for index in 0..4 {
        let vcpu = vm.create_vcpu(index).unwrap();
        vcpu.set_cpuid2(&for_vcpu(supported, index, 4).unwrap()).unwrap();
        let accepted = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let leaf_1 = accepted
            .as_slice()
            .iter()
            .find(|entry| entry.function == 1)
            .unwrap();
        assert_eq!(leaf_1.ebx >> 16, u32::from(index) << 8 | 4);
    }
}
