//! A vCPU thread: KVM_RUN, and what the registers of devices do when the guest touches them. It wakes workers by
//! event descriptors and writes the console; it opens nothing and makes no thread.

use super::{Call, any, one_of};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IO(KVMIO, 0xad)`.
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: u64 = 0x4020_ae76;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// `_IOR(KVMIO, 0x83, struct kvm_sregs)`.
const KVM_GET_SREGS: u64 = 0x8138_ae83;

pub const CALLS: &[Call] = &[
    one_of(
        libc::SYS_ioctl,
        1,
        &[
            KVM_RUN,
            KVM_KVMCLOCK_CTRL,
            KVM_IRQFD,
            KVM_IOEVENTFD,
            KVM_GET_REGS,
            KVM_GET_SREGS,
        ],
        "runs the guest; connects queues on DRIVER_OK; registers for the message about an unexpected exit",
    ),
    any(libc::SYS_pwrite64, "the console's ring"),
    any(libc::SYS_eventfd2, "queues get event descriptors on DRIVER_OK"),
    any(
        libc::SYS_poll,
        "waits, with a deadline, until a worker has let go of its queues",
    ),
];
