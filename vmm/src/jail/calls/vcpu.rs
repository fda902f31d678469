//! A vCPU thread: KVM_RUN, and what the registers of devices do when the guest touches them. It wakes workers by
//! event descriptors and writes the console; it opens nothing and makes no thread.

use super::{Call, any, one_of};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: u64 = 0x8090_ae81;

pub const CALLS: &[Call] = &[
    one_of(
        libc::SYS_ioctl,
        1,
        &[KVM_RUN, KVM_GET_REGS],
        "runs the guest; where it stood, for the message about an unexpected exit",
    ),
    any(libc::SYS_pwrite64, "the console's ring"),
];
