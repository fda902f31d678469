//! The state of the first vCPU at the 64-bit entry point: long mode, paging on, flat segments, RSI at the zero page
//! (Documentation/x86/boot.rst). The other vCPUs wait, as reset left them, for INIT and SIPI.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::{Error, call};
use crate::machine::layout;

/// CR0: protected mode, FPU of the 387 kind, paging.
const CR0: u64 = 1 | 1 << 4 | 1 << 31;
/// CR4: physical address extension, which long mode needs.
const CR4: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 2;

/// MSRs that firmware would have set: fast string operations; memory is write-back by default, MTRRs on.
const MSRS: [(u32, u64); 2] = [(0x1a0, 1), (0x2ff, 1 << 11 | 6)];

/// Sets what firmware would have set on every processor.
///
/// # Errors
/// [`Error`] where KVM refuses.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entries = MSRS.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|error| Error::Cpuid(format!("MSRs: {error:?}")))?;
    let set = vcpu.set_msrs(&msrs).map_err(call("setting MSRs"))?;
    if set == entries.len() {
        Ok(())
    } else {
        Err(Error::Missing("MSR that the guest needs"))
    }
}

/// Points the first vCPU at the 64-bit entry point `entry`.
///
/// # Errors
/// [`Error`] where KVM refuses.
pub fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    let mut special = vcpu.get_sregs().map_err(call("reading registers"))?;
    special.cr0 = CR0;
    special.cr3 = layout::PAGE_TABLES;
    special.cr4 = CR4;
    special.efer = EFER;
    special.gdt.base = layout::DESCRIPTOR_TABLE;
    special.gdt.limit = 4 * 8 - 1;
    special.cs = kvm_segment {
        l: 1,
        db: 0,
        ..flat(0x10, CODE)
    };
    let data = flat(0x18, DATA);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = kvm_segment {
        limit: 0x67,
        g: 0,
        db: 0,
        s: 0,
        ..flat(0, BUSY_TSS)
    };
    vcpu.set_sregs(&special).map_err(call("setting segments"))?;
    let general = kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&general).map_err(call("setting registers"))
}

/// Code, execute and read, accessed.
const CODE: u8 = 0xb;
/// Data, read and write, accessed.
const DATA: u8 = 0x3;
/// A TSS in use.
const BUSY_TSS: u8 = 0xb;

/// A segment of 4 GiB from 0 on.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_takes_the_entry_state() {
        let Some(vm) = super::super::tests::vm() else {
            return;
        };
        let vcpu = vm.vcpu(0).unwrap();
        let cpuid = super::super::cpuid::for_vcpu(&vm.supported_cpuid().unwrap(), 0, 1).unwrap();
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
