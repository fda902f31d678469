//! The state of one vCPU in KVM: read by its own thread while it is paused, and set before its thread exists,
//! once it has its CPUID entries. KVM has no state of a guest's VMs, as no guest has VMX or SVM.
//!
//! The order in which a state is set, with the sections of Documentation/virt/kvm/api.rst:
//!
//! 1. CPUID, which decides which MSRs and which parts of XSAVE exist.
//! 2. KVM_SET_MP_STATE, KVM_SET_REGS, KVM_SET_SREGS. The latter has the base and the mode of the local APIC.
//! 3. KVM_SET_XCRS, KVM_SET_XSAVE, KVM_SET_DEBUGREGS.
//! 4. KVM_SET_LAPIC, "after MSR_IA32_APICBASE has been set" (4.57), which was in step 2.
//! 5. KVM_SET_MSRS: the TSC first, its deadline last. The deadline arms the timer of the local APIC, and KVM
//!    ignores it unless the registers of step 4 say that the timer has that mode.
//! 6. KVM_SET_VCPU_EVENTS: interrupts and exceptions that wait. Setting registers would drop an exception.
//!
//! Reading begins with KVM_GET_MP_STATE: in it, KVM handles an INIT or SIPI that waits, and changes registers. The MSRs
//! are read before the local APIC: a deadline that passes meanwhile is then saved as a deadline and as an interrupt
//! that waits, and otherwise as neither.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::kvm::{self, error_at, raw};

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// Farther from a TSC than KVM takes for an attempt to synchronise it, which is a second: some minutes.
const DISTANT: u64 = 1 << 40;

/// The state of one vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: Box<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    /// Indices and values, in the order in which they are set.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of `vcpu`, and of its MSRs those in `msrs` that KVM can read.
    ///
    /// # Errors
    /// [`kvm::Error`] if KVM refuses a request.
    pub fn read(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, kvm::Error> {
        let read = |what| error_at(what);
        Ok(Self {
            mp_state: vcpu.get_mp_state().map_err(read("reading a vCPU's MP state"))?,
            regs: vcpu.get_regs().map_err(read("reading a vCPU's registers"))?,
            sregs: vcpu
                .get_sregs()
                .map_err(read("reading a vCPU's special registers"))?,
            xsave: Box::new(vcpu.get_xsave().map_err(read("reading a vCPU's XSAVE area"))?),
            xcrs: Box::new(vcpu.get_xcrs().map_err(read("reading a vCPU's XCRs"))?),
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(read("reading a vCPU's debug registers"))?,
            msrs: read_msrs(vcpu, msrs)?,
            lapic: Box::new(vcpu.get_lapic().map_err(read("reading a local APIC"))?),
            events: vcpu.get_vcpu_events().map_err(read("reading a vCPU's events"))?,
        })
    }

    fn tsc(&self) -> Option<u64> {
        let found = self.msrs.iter().find(|(index, _)| *index == TSC);
        found.map(|(_, value)| *value)
    }

    fn set(&self, vcpu: &VcpuFd, xsave_bytes: i32) -> Result<(), kvm::Error> {
        let set = |what| error_at(what);
        vcpu.set_mp_state(self.mp_state)
            .map_err(set("setting a vCPU's MP state"))?;
        vcpu.set_regs(&self.regs)
            .map_err(set("setting a vCPU's registers"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(set("setting a vCPU's special registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(set("setting a vCPU's XCRs"))?;
        raw::set_xsave(vcpu, &self.xsave, xsave_bytes).map_err(set("setting a vCPU's XSAVE area"))?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(set("setting a vCPU's debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(set("setting a local APIC"))?;
        set_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(set("setting a vCPU's events"))
    }
}

/// Sets the states of all vCPUs of a VM, by number; they have their CPUID entries and have never run. `xsave_bytes` is
/// the size of KVM's XSAVE area (KVM_CAP_XSAVE2).
///
/// KVM compares each TSC that is set with the one that was set last, of whichever vCPU: within a second of what that
/// one has become, both get the same offset. Creating a vCPU sets a TSC of 0, so all must exist before. The first TSC
/// is set twice, as Linux before 6.7 takes even one that is less than a second from that 0 for an attempt to
/// synchronise, and ignores it.
///
/// # Errors
/// [`kvm::Error`] if KVM refuses a request; the vCPUs must then not run.
pub fn set_all(states: &[VcpuState], vcpus: &[VcpuFd], xsave_bytes: i32) -> Result<(), kvm::Error> {
    if let (Some(vcpu), Some(tsc)) = (vcpus.first(), states.first().and_then(VcpuState::tsc)) {
        set_msrs(vcpu, &[(TSC, tsc.wrapping_add(DISTANT))])?;
    }
    for (state, vcpu) in states.iter().zip(vcpus) {
        state.set(vcpu, xsave_bytes)?;
    }
    Ok(())
}

/// Those of `indices` that KVM can read, the TSC first and its deadline last.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, kvm::Error> {
    let mut indices = indices.to_vec();
    indices.sort_by_key(|index| match *index {
        TSC => (0, 0),
        TSC_DEADLINE => (2, 0),
        other => (1, other),
    });
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices.as_slice();
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs = list(&entries)?;
        let read = vcpu.get_msrs(&mut msrs).map_err(error_at("reading MSRs"))?;
        let entries = msrs.as_slice().iter().take(read);
        found.extend(entries.map(|entry| (entry.index, entry.data)));
        // KVM stops at one that this vCPU does not have.
        rest = rest.get(read.saturating_add(1)..).unwrap_or_default();
    }
    Ok(found)
}

/// Sets `msrs` in order. KVM refuses to set a few that it can read; such an MSR must have its value already.
fn set_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), kvm::Error> {
    let entry = |(index, data): &(u32, u64)| kvm_msr_entry {
        index: *index,
        data: *data,
        ..Default::default()
    };
    let mut rest = msrs;
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest.iter().map(entry).collect();
        let set = vcpu
            .set_msrs(&list(&entries)?)
            .map_err(error_at("setting MSRs"))?;
        if let Some((index, data)) = rest.get(set).copied()
            && read_msrs(vcpu, &[index])? != [(index, data)]
        {
            return Err(kvm::Error::Msr { index, data });
        }
        rest = rest.get(set.saturating_add(1)..).unwrap_or_default();
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm::Error> {
    Msrs::from_entries(entries).map_err(|error| kvm::Error::TooManyEntries {
        action: "reading or setting MSRs",
        reason: format!("{error:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::{Vm, cpuid, registers};

    impl VcpuState {
        /// The bytes of the state, without the MSRs that count time.
        pub fn without_time(&self) -> Vec<u8> {
            let counts = |index: u32| index == TSC || index == TSC_DEADLINE;
            let msrs: Vec<_> = self.msrs.iter().filter(|(index, _)| !counts(*index)).collect();
            postcard::to_stdvec(&(
                &msrs,
                &self.mp_state,
                &self.regs,
                &self.sregs,
                &self.xsave,
                &self.xcrs,
                &self.debug_regs,
                &self.lapic,
                &self.events,
            ))
            .unwrap()
        }
    }

    fn vcpu(vm: &Vm) -> VcpuFd {
        vcpus(vm, 1).remove(0)
    }

    fn vcpus(vm: &Vm, count: u8) -> Vec<VcpuFd> {
        let create = |index| {
            let vcpu = vm.create_vcpu(index).unwrap();
            let cpuid = cpuid::for_vcpu(vm.supported_cpuid(), index, count).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            vcpu
        };
        (0..count).map(create).collect()
    }

    fn read_tsc(vcpu: &VcpuFd) -> u64 {
        read_msrs(vcpu, &[TSC]).unwrap()[0].1
    }

    /// False where the TSC of a guest is that of the host, whatever is set, as with some nested KVM.
    fn keeps_tsc(vm: &Vm) -> bool {
        let vcpu = vcpu(vm);
        let distant = read_tsc(&vcpu) + DISTANT;
        set_msrs(&vcpu, &[(TSC, distant)]).unwrap();
        read_tsc(&vcpu) >= distant
    }

    #[test]
    fn the_tscs_of_all_vcpus_go_on_from_their_values_and_together() {
        /// Cycles: far more than a test takes.
        const MINUTES: u64 = 1 << 42;
        let Some(vm) = crate::kvm::tests::vm() else { return };
        let msrs = vm.msr_indices().unwrap();
        for tsc in [1 << 28, 1 << 50] {
            let new_vm = crate::kvm::tests::vm().unwrap();
            let vcpus = vcpus(&new_vm, 3);
            let mut states: Vec<_> = vcpus
                .iter()
                .map(|vcpu| VcpuState::read(vcpu, &msrs).unwrap())
                .collect();
            for (_, value) in states
                .iter_mut()
                .flat_map(|state| &mut state.msrs)
                .filter(|(index, _)| *index == TSC)
            {
                *value = tsc;
            }
            set_all(&states, &vcpus, vm.xsave_bytes()).unwrap();
            // A TSC that was set on its own is behind by what setting the states before it took.
            let read: Vec<u64> = vcpus.iter().chain(vcpus.first()).map(read_tsc).collect();
            assert!(read.is_sorted(), "{read:?}");
            if !keeps_tsc(&crate::kvm::tests::vm().unwrap()) {
                println!("skipped: this KVM does not keep a TSC that is set");
                continue;
            }
            assert!(read[0] >= tsc && read[3] < tsc + MINUTES, "{tsc}: {read:?}");
        }
    }

    #[test]
    fn a_state_that_was_set_is_read_again() {
        let Some(vm) = crate::kvm::tests::vm() else { return };
        let msrs = vm.msr_indices().unwrap();
        let first = vcpu(&vm);
        registers::set_msrs(&first).unwrap();
        registers::set_entry(&first, 0x100_0000).unwrap();
        set_msrs(&first, &[(0xc000_0102, 0x1234_5678)]).unwrap();
        let mut lapic = first.get_lapic().unwrap();
        // The spurious interrupt vector register: enabled, and an LVT entry of the timer.
        for (register, value) in [(0xf0, 0x1ff_u32), (0x320, 0x4_00ec)] {
            for (byte, value) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
                *byte = i8::from_ne_bytes([value]);
            }
        }
        first.set_lapic(&lapic).unwrap();
        let saved = VcpuState::read(&first, &msrs).unwrap();
        assert!(saved.msrs.contains(&(0xc000_0102, 0x1234_5678)));
        let bytes = postcard::to_stdvec(&saved).unwrap();
        let loaded: VcpuState = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(postcard::to_stdvec(&loaded).unwrap(), bytes);

        let second_vm = crate::kvm::tests::vm().unwrap();
        let second = vcpu(&second_vm);
        let second = [second];
        set_all(&[loaded], &second, vm.xsave_bytes()).unwrap();
        let again = VcpuState::read(&second[0], &msrs).unwrap();
        assert_eq!(again.without_time(), saved.without_time());
        assert!(again.tsc() >= saved.tsc(), "the TSC went back");
    }

    #[test]
    fn an_msr_that_can_not_be_set_is_named() {
        let Some(vm) = crate::kvm::tests::vm() else { return };
        // EFER with a reserved bit.
        let error = set_msrs(&vcpu(&vm), &[(0xc000_0080, 1 << 63)]).unwrap_err();
        assert!(error.to_string().contains("0xc0000080"), "{error}");
    }
}
