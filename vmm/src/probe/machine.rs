//! The VM of the probe's guest: one vCPU in 64-bit mode, 2 MiB of memory, the in-kernel local APIC. Created
//! and run by [`super::run`] on a new thread; stops at the first check that fails.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap};

use super::guest;
use crate::kvm::raw;
use crate::kvm::segments;

/// Address of the three pages that KVM on Intel processors uses for a TSS; the guest does not use them.
const KVM_TSS: usize = 0xfffb_d000;
const CPUID_1_ECX_XSAVE: u32 = 1 << 26;

/// The result of running the checks from a given one on.
pub struct Run {
    /// How many checks passed before the first failed one.
    pub passed: usize,
    /// Why the next check failed; None if all passed.
    pub failed: Option<String>,
}

/// Runs the checks from `first` on until one fails. The caller sets `stop` before it signals this thread to
/// leave KVM_RUN.
///
/// # Errors
/// The step of creating the VM that failed, and why.
pub fn run(kvm: &Kvm, first: usize, stop: &AtomicBool) -> Result<Run, String> {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), guest::MEMORY_BYTES)])
        .map_err(|error| format!("mapping guest memory: {error}"))?;
    memory
        .write_slice(&guest::image(), GuestAddress(0))
        .map_err(|error| format!("writing the test guest: {error}"))?;
    let vm = create_vm(kvm, &memory)?;
    let mut vcpu = vm
        .create_vcpu(0)
        .map_err(|error| format!("KVM_CREATE_VCPU: {error}"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|error| format!("KVM_GET_SUPPORTED_CPUID: {error}"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(|error| format!("KVM_SET_CPUID2: {error}"))?;
    set_registers(&vcpu, first, has_xsave(&cpuid))?;
    Ok(run_checks(&mut vcpu, first, stop))
}

fn create_vm(kvm: &Kvm, memory: &GuestMemoryMmap) -> Result<VmFd, String> {
    let vm = kvm
        .create_vm()
        .map_err(|error| format!("KVM_CREATE_VM: {error}"))?;
    vm.set_tss_address(KVM_TSS)
        .map_err(|error| format!("KVM_SET_TSS_ADDR: {error}"))?;
    vm.create_irq_chip()
        .map_err(|error| format!("KVM_CREATE_IRQCHIP: {error}"))?;
    let host = memory
        .get_host_address(GuestAddress(0))
        .map_err(|error| format!("address of guest memory: {error}"))?;
    raw::set_slot(&vm, 0, 0, (0, guest::MEMORY_BYTES as u64), host.addr() as u64)
        .map_err(|error| format!("KVM_SET_USER_MEMORY_REGION: {error}"))?;
    Ok(vm)
}

fn has_xsave(cpuid: &CpuId) -> bool {
    cpuid
        .as_slice()
        .iter()
        .any(|entry| entry.function == 1 && entry.ecx & CPUID_1_ECX_XSAVE != 0)
}

/// Sets 64-bit mode with paging, as the 64-bit boot protocol demands it, and the instruction pointer to the
/// code.
fn set_registers(vcpu: &VcpuFd, first: usize, xsave: bool) -> Result<(), String> {
    let mut sregs: kvm_sregs = vcpu
        .get_sregs()
        .map_err(|error| format!("KVM_GET_SREGS: {error}"))?;
    sregs.cs = segments::code(guest::KERNEL_CODE);
    let data = segments::data(guest::KERNEL_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segments::task(guest::TASK, &guest::TSS);
    (sregs.gdt.base, sregs.gdt.limit) = guest::GDT;
    (sregs.idt.base, sregs.idt.limit) = guest::IDT;
    sregs.cr3 = guest::PAGE_TABLE;
    // PE, MP, ET, NE, WP, PG.
    sregs.cr0 = 0x8001_0033;
    // PAE, OSFXSR, OSXMMEXCPT, and OSXSAVE if the CPU has XSAVE.
    sregs.cr4 = 0x620 | (u64::from(xsave) << 18);
    // SCE, LME, LMA.
    sregs.efer = 0x501;
    vcpu.set_sregs(&sregs)
        .map_err(|error| format!("KVM_SET_SREGS: {error}"))?;
    let regs = kvm_regs {
        rip: guest::CODE,
        rsp: guest::STACK,
        rdi: first as u64,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(|error| format!("KVM_SET_REGS: {error}"))
}

/// Runs the guest until all checks have passed or one has failed.
fn run_checks(vcpu: &mut VcpuFd, first: usize, stop: &AtomicBool) -> Run {
    let mut passed = 0;
    let failed = loop {
        if first.saturating_add(passed) == guest::CHECKS.len() {
            break None;
        }
        if stop.load(Ordering::Acquire) {
            break Some("not finished within the time limit".to_owned());
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::PORT_PASSED, [index])) => {
                if usize::from(*index) != first.saturating_add(passed) {
                    break Some(format!("the guest reported check {index} instead"));
                }
                passed = passed.saturating_add(1);
            }
            Ok(VcpuExit::IoOut(guest::PORT_FAILED, [guest::WRONG_RESULT])) => {
                break Some("the result is wrong".to_owned());
            }
            Ok(VcpuExit::IoOut(guest::PORT_FAILED, [vector])) => {
                break Some(format!("unexpected exception {vector}"));
            }
            Ok(VcpuExit::InternalError) => break Some(describe_internal_error(vcpu)),
            Ok(VcpuExit::Shutdown) => break Some("triple fault".to_owned()),
            Ok(other) => break Some(format!("unexpected exit {other:?}")),
            // The signal of the main thread, which has set `stop`.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => break Some(format!("KVM_RUN: {error}")),
        }
    };
    Run { passed, failed }
}

fn describe_internal_error(vcpu: &mut VcpuFd) -> String {
    let suberror = raw::internal_error(vcpu);
    let meaning = if suberror == 1 {
        "KVM can't emulate the instruction"
    } else {
        "see the host kernel's log"
    };
    format!("KVM_EXIT_INTERNAL_ERROR, suberror {suberror}: {meaning}")
}
