//! Features that differ from what KVM offers: a few that every guest has, and those that no guest sees. A
//! container's VM neither runs VMs nor profiles the host's CPU: hidden features leave less of KVM to attack, and
//! less state to save. Pure.

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1, ECX: the local APIC timer has TSC deadline mode, which needs no calibration (there is no PIT to
/// calibrate by).
pub(super) const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
pub(super) const HYPERVISOR: u32 = 1 << 31;
/// Leaf 6, EAX: the APIC timer never stops, so the kernel does not look for a broadcast timer.
pub(super) const ARAT: u32 = 1 << 2;

/// Bits that are cleared in one leaf.
pub(super) struct Hidden {
    pub(super) function: u32,
    /// The subleaf; 0 if the leaf has none.
    pub(super) index: u32,
    /// The bits of EAX, EBX, ECX and EDX.
    pub(super) bits: [u32; 4],
}

/// What no guest sees.
pub(super) const HIDDEN: &[Hidden] = &[
    Hidden {
        function: 1,
        index: 0,
        bits: [
            0,
            0,
            // Performance monitoring: DTES64, DS_CPL, PDCM.
            1 << 2 | 1 << 4 | 1 << 15
            // VMX: nested virtualisation.
            | 1 << 5,
            // Performance monitoring: DS.
            1 << 21,
        ],
    },
    Hidden {
        function: 7,
        index: 0,
        bits: [
            0,
            // SGX: no EPC memory is mapped into the guest, so no enclave can be made.
            1 << 2
            // Processor trace: records the guest's branches; its state is not saved.
            | 1 << 25,
            // WAITPKG: UMWAIT and TPAUSE let any process keep a physical CPU asleep without a VM exit.
            1 << 5
            // SGX_LC, as above.
            | 1 << 30,
            // ARCH_LBR: performance monitoring.
            1 << 19
            // AMX_BF16, AMX_TILE, AMX_INT8: a guest may use tiles only if the VMM's process has asked for them
            // (ARCH_REQ_XCOMP_GUEST_PERM). It has not, so leaf 0xd lacks their state.
            | 1 << 22 | 1 << 24 | 1 << 25,
        ],
    },
    Hidden {
        function: 7,
        index: 1,
        bits: [
            // ARCH_PERFMON_EXT: performance monitoring. AMX_FP16, as above.
            1 << 8 | 1 << 21,
            0,
            0,
            // AMX_COMPLEX, as above.
            1 << 8,
        ],
    },
    Hidden {
        function: 0x8000_0001,
        index: 0,
        bits: [
            0,
            0,
            // SVM: nested virtualisation.
            1 << 2
            // Performance monitoring: IBS, PerfCtrExtCore, PerfCtrExtNB, PerfTsc, PerfCtrExtLLC.
            | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 27 | 1 << 28,
            0,
        ],
    },
];

/// Leaves that describe hidden features; all of their registers are 0.
pub(super) const EMPTY: &[u32] = &[
    0xa,         // performance monitoring (Intel)
    0x12,        // SGX
    0x14,        // processor trace
    0x1c,        // last branch records: performance monitoring
    0x1d,        // AMX tiles
    0x1e,        // AMX multiplication
    0x23,        // performance monitoring, extended (Intel)
    0x8000_000a, // SVM: nested virtualisation
    0x8000_001b, // IBS: performance monitoring
    0x8000_001f, // memory encryption: this VM's memory is not encrypted
    0x8000_0022, // performance monitoring, version 2 (AMD)
];

/// Hides [`HIDDEN`] and [`EMPTY`], and adds what every guest has.
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
        for hidden in HIDDEN {
            if (hidden.function, hidden.index) == (entry.function, entry.index) {
                let [eax, ebx, ecx, edx] = hidden.bits;
                entry.eax &= !eax;
                entry.ebx &= !ebx;
                entry.ecx &= !ecx;
                entry.edx &= !edx;
            }
        }
        if EMPTY.contains(&entry.function) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
    }
}
