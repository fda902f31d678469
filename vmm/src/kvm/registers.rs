//! The registers of the first vCPU at the kernel's 64-bit entry point: long mode with paging, flat segments,
//! RSI with the zero page's address (Documentation/arch/x86/boot.rst, "64-bit boot protocol"). The other
//! vCPUs keep their reset state and wait for INIT and SIPI.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;

use super::segments::{self, Tss};
use super::{Error, error_at};
use crate::layout;

/// CR0: PE, ET, PG.
const CR0: u64 = 1 | 1 << 4 | 1 << 31;
/// CR4: PAE, which long mode requires.
const CR4: u64 = 1 << 5;
/// EFER: LME, LMA.
const EFER: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: bit 1 is always set.
const RFLAGS: u64 = 2;

/// Values that firmware sets: IA32_MISC_ENABLE with fast strings; IA32_MTRR_DEF_TYPE with MTRRs enabled and
/// write-back as the default.
const MSRS: [(u32, u64); 2] = [(0x1a0, 1), (0x2ff, 1 << 11 | 6)];

/// Sets the MSRs that firmware sets on every processor.
///
/// # Errors
/// [`Error::Unsupported`] if KVM does not have one of them.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entries = MSRS.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|error| Error::TooManyEntries {
        action: "setting MSRs",
        reason: format!("{error:?}"),
    })?;
    let set = vcpu.set_msrs(&msrs).map_err(error_at("setting MSRs"))?;
    if set == entries.len() {
        Ok(())
    } else {
        Err(Error::Unsupported("IA32_MISC_ENABLE and IA32_MTRR_DEF_TYPE"))
    }
}

/// Sets the registers of the first vCPU so that it starts at physical address `entry`.
///
/// # Errors
/// [`Error::Ioctl`] if KVM refuses.
pub fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    let mut special = vcpu
        .get_sregs()
        .map_err(error_at("reading the special registers"))?;
    special.cr0 = CR0;
    special.cr3 = layout::PAGE_TABLES;
    special.cr4 = CR4;
    special.efer = EFER;
    special.gdt.base = layout::GDT;
    special.gdt.limit = 4 * 8 - 1;
    special.cs = segments::code(0x10);
    let data = segments::data(0x18);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = segments::task(0, &Tss { base: 0, limit: 0x67 });
    vcpu.set_sregs(&special)
        .map_err(error_at("setting the special registers"))?;
    let general = kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&general)
        .map_err(error_at("setting the general registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_accepts_the_entry_state() {
        let Some(vm) = super::super::tests::vm() else {
            return;
        };
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = super::super::cpuid::for_vcpu(vm.supported_cpuid(), 0, 1).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        set_msrs(&vcpu).unwrap();
        set_entry(&vcpu, 0x100_0000).unwrap();
        let general = vcpu.get_regs().unwrap();
        assert_eq!((general.rip, general.rsi), (0x100_0000, layout::ZERO_PAGE));
        let special = vcpu.get_sregs().unwrap();
        assert_eq!(
            (special.cr0 & CR0, special.cs.l, special.efer & EFER),
            (CR0, 1, EFER)
        );
    }
}
