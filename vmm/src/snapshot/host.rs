//! What a host offers to its guests, as far as a running guest relies on it: a kernel looks once, when it
//! boots. A snapshot has the description of the host that it was made on, and continues only on one that has
//! the same. Called when vCPUs are created.

use kvm_bindings::{KVM_CAP_ADJUST_CLOCK, KVM_CAP_TSC_CONTROL, KVM_CAP_X2APIC_API, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::kvm::{self, Vm, cpuid, error_at};

/// KVM_CAP_XSAVE2, which is the size of the XSAVE area (Linux 5.17).
const KVM_CAP_XSAVE2: u32 = 208;

/// The capabilities of KVM that decide what a vCPU's state has, with their names in error messages.
const CAPABILITIES: [(u32, &str); 4] = [
    (KVM_CAP_XSAVE2, "KVM_CAP_XSAVE2"),
    (KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API"),
    (KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"),
    (KVM_CAP_TSC_CONTROL, "KVM_CAP_TSC_CONTROL"),
];

/// The description of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What the guest's first vCPU reads by CPUID.
    pub cpuid: Vec<Leaf>,
    /// MSRs that describe the processor: its microcode, what it is immune to.
    pub feature_msrs: Vec<(u32, u64)>,
    /// The results of KVM_CHECK_EXTENSION for a few capabilities.
    pub capabilities: Vec<i32>,
    /// The frequency of a vCPU's TSC in kHz.
    pub tsc_khz: u32,
}

/// A leaf or subleaf of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    function: u32,
    index: u32,
    /// EAX, EBX, ECX and EDX.
    registers: [u32; 4],
}

/// Two hosts differ, in the thing that is named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// In a CPU feature or the model.
    #[error("CPUID leaf {function:#x}, subleaf {index:#x}")]
    Cpuid {
        /// The leaf.
        function: u32,
        /// The subleaf.
        index: u32,
    },
    /// In the microcode or in what the processor is immune to.
    #[error("the MSR {0:#x} of the processor")]
    Msr(u32),
    /// In KVM.
    #[error("the capability {0} of KVM")]
    Capability(&'static str),
    /// In the frequency of the TSC.
    #[error("the frequency of the TSC, {found} instead of {expected} kHz")]
    TscFrequency {
        /// Of this host.
        found: u32,
        /// Of the other one.
        expected: u32,
    },
}

impl Host {
    /// This host. `vcpu` is the first vCPU of a VM with `vcpus`.
    ///
    /// # Errors
    /// [`kvm::Error`] if KVM refuses a request.
    pub fn of(vm: &Vm, vcpu: &VcpuFd, vcpus: u8) -> Result<Self, kvm::Error> {
        let cpuid = cpuid::for_vcpu(vm.supported_cpuid(), 0, vcpus)?;
        let leaf = |entry: &kvm_bindings::kvm_cpuid_entry2| Leaf {
            function: entry.function,
            index: entry.index,
            registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
        };
        Ok(Self {
            cpuid: cpuid.as_slice().iter().map(leaf).collect(),
            feature_msrs: feature_msrs(vm)?,
            capabilities: CAPABILITIES.map(|(number, _)| vm.capability(number)).to_vec(),
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(error_at("reading the frequency of the TSC"))?,
        })
    }

    /// Whether a guest that has run on `self` can continue on `other`.
    ///
    /// # Errors
    /// [`Difference`] with the first thing that differs.
    pub fn compare(&self, other: &Self) -> Result<(), Difference> {
        let of = |leaf: &Leaf| Difference::Cpuid {
            function: leaf.function,
            index: leaf.index,
        };
        first_difference(&self.cpuid, &other.cpuid).map_or(Ok(()), |leaf| Err(of(leaf)))?;
        first_difference(&self.feature_msrs, &other.feature_msrs)
            .map_or(Ok(()), |(index, _)| Err(Difference::Msr(*index)))?;
        let named = |host: &Self| -> Vec<(&'static str, i32)> {
            let names = CAPABILITIES.iter().map(|(_, name)| *name);
            names.zip(host.capabilities.iter().copied()).collect()
        };
        first_difference(&named(self), &named(other))
            .map_or(Ok(()), |(name, _)| Err(Difference::Capability(name)))?;
        if self.tsc_khz != other.tsc_khz {
            return Err(Difference::TscFrequency {
                found: other.tsc_khz,
                expected: self.tsc_khz,
            });
        }
        Ok(())
    }
}

/// The first element that is not in the same place of both lists.
fn first_difference<'a, T: PartialEq>(one: &'a [T], other: &'a [T]) -> Option<&'a T> {
    let differing = one.iter().zip(other).find(|(one, other)| one != other);
    let (longer, common) = if one.len() >= other.len() {
        (one, other.len())
    } else {
        (other, one.len())
    };
    differing.map(|(one, _)| one).or_else(|| longer.get(common))
}

/// The MSRs that describe the processor, with their values. Those that KVM can't read are left out.
fn feature_msrs(vm: &Vm) -> Result<Vec<(u32, u64)>, kvm::Error> {
    let mut found = Vec::new();
    for index in vm.feature_msr_indices()? {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut one = Msrs::from_entries(&[entry]).map_err(|error| kvm::Error::TooManyEntries {
            action: "reading MSRs of the processor",
            reason: format!("{error:?}"),
        })?;
        if vm.read_feature_msrs(&mut one).is_ok_and(|read| read == 1) {
            found.extend(one.as_slice().iter().map(|entry| (entry.index, entry.data)));
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn host() -> Host {
        let leaf = |function, index| Leaf {
            function,
            index,
            registers: [function, index, 3, 4],
        };
        Host {
            cpuid: vec![leaf(0, 0), leaf(1, 0), leaf(7, 0), leaf(7, 1)],
            feature_msrs: vec![(0x8b, 1 << 32), (0x10a, 0x2b)],
            capabilities: vec![4096, 3, 2, 1],
            tsc_khz: 3_000_000,
        }
    }

    #[test]
    fn each_difference_is_named() {
        let host = host();
        assert_eq!(host.compare(&host.clone()), Ok(()));
        let differs = |change: &dyn Fn(&mut Host)| {
            let mut other = host.clone();
            change(&mut other);
            let (one, back) = (host.compare(&other), other.compare(&host));
            assert!(back.is_err());
            one.unwrap_err().to_string()
        };
        for register in 0..4 {
            let text = differs(&|other| other.cpuid[3].registers[register] ^= 1 << 31);
            assert_eq!(text, "CPUID leaf 0x7, subleaf 0x1");
        }
        assert_eq!(
            differs(&|other| other.cpuid.truncate(3)),
            "CPUID leaf 0x7, subleaf 0x1"
        );
        let text = differs(&|other| other.feature_msrs[0].1 += 1 << 32);
        assert_eq!(text, "the MSR 0x8b of the processor");
        let text = differs(&|other| other.feature_msrs.truncate(1));
        assert_eq!(text, "the MSR 0x10a of the processor");
        for (index, (_, name)) in CAPABILITIES.iter().enumerate() {
            let text = differs(&|other| other.capabilities[index] += 1);
            assert_eq!(text, format!("the capability {name} of KVM"));
        }
        let text = differs(&|other| other.tsc_khz += 1);
        assert_eq!(text, "the frequency of the TSC, 3000001 instead of 3000000 kHz");
    }

    #[test]
    fn a_host_is_the_same_as_itself() {
        let Some(vm) = crate::kvm::tests::vm() else { return };
        let vcpu = vm.create_vcpu(0).unwrap();
        let host = Host::of(&vm, &vcpu, 2).unwrap();
        assert!(!host.cpuid.is_empty());
        assert_eq!(host.compare(&Host::of(&vm, &vcpu, 2).unwrap()), Ok(()));
        assert!(matches!(
            host.compare(&Host::of(&vm, &vcpu, 4).unwrap()),
            Err(Difference::Cpuid { .. })
        ));
    }
}
