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

/// `_IOR(KVMIO, 0x98, struct kvm_mp_state)`.
const KVM_GET_MP_STATE: u64 = 0x8004_ae98;
/// `_IOR(KVMIO, 0x83, struct kvm_sregs)`.
const KVM_GET_SREGS: u64 = 0x8138_ae83;
/// `_IOR(KVMIO, 0xa4, struct kvm_xsave)`.
const KVM_GET_XSAVE: u64 = 0x9000_aea4;
/// `_IOR(KVMIO, 0xa6, struct kvm_xcrs)`.
const KVM_GET_XCRS: u64 = 0x8188_aea6;
/// `_IOR(KVMIO, 0xa1, struct kvm_debugregs)`.
const KVM_GET_DEBUGREGS: u64 = 0x8080_aea1;
/// `_IOR(KVMIO, 0x8e, struct kvm_lapic_state)`.
const KVM_GET_LAPIC: u64 = 0x8400_ae8e;
/// `_IOWR(KVMIO, 0x88, struct kvm_msrs)`.
const KVM_GET_MSRS: u64 = 0xc008_ae88;
/// `_IOR(KVMIO, 0x9f, struct kvm_vcpu_events)`.
const KVM_GET_VCPU_EVENTS: u64 = 0x8040_ae9f;

/// As [`CALLS`], with what reads the vCPU's state, and without the console's ring, which only a shim has.
pub const SAVED_CALLS: &[Call] = &[one_of(
    libc::SYS_ioctl,
    1,
    &[
        KVM_RUN,
        KVM_GET_REGS,
        KVM_KVMCLOCK_CTRL,
        KVM_SIGNAL_MSI,
        KVM_GET_MP_STATE,
        KVM_GET_SREGS,
        KVM_GET_XSAVE,
        KVM_GET_XCRS,
        KVM_GET_DEBUGREGS,
        KVM_GET_LAPIC,
        KVM_GET_MSRS,
        KVM_GET_VCPU_EVENTS,
    ],
    "as that of any vCPU; reads the vCPU's state for a snapshot",
)];
