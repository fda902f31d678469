//! System calls of a vCPU thread: KVM_RUN, and what emulated registers do when the guest accesses them: wake
//! a worker by its eventfd, write the console. It opens no file and creates no thread.

use super::{Call, KVM_SIGNAL_MSI, any, one_of};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// `_IO(KVMIO, 0xad)`.
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;

pub const CALLS: &[Call] = &[
    one_of(
        libc::SYS_ioctl,
        1,
        &[KVM_RUN, KVM_GET_REGS, KVM_KVMCLOCK_CTRL, KVM_SIGNAL_MSI],
        "runs the guest; reads RIP for the message about an unexpected VM exit; tells the guest of a pause; sends a \
         pending interrupt that the driver unmasks",
    ),
    any(libc::SYS_pwrite64, "writes the console's ring"),
];
