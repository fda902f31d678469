//! System calls of the main thread of a VMM that saves its guest and exits: it waits until the guest is
//! ready, and writes the files of the snapshot, which are open before. It serves no shim and adds no device.

use super::{Call, KVM_SET_USER_MEMORY_REGION, KVM_SIGNAL_MSI, any, one_of};

/// `_IOR(KVMIO, 0x7c, struct kvm_clock_data)`.
const KVM_GET_CLOCK: u64 = 0x8030_ae7c;
/// `_IOW(KVMIO, 0x42, struct kvm_dirty_log)`.
const KVM_GET_DIRTY_LOG: u64 = 0x4010_ae42;

pub const CALLS: &[Call] = &[
    any(
        libc::SYS_poll,
        "waits for the agent's stream and for the VM's exit",
    ),
    any(
        libc::SYS_pread64,
        "reads KVM's statistics, for the counts of VM exits, and the memory that was saved",
    ),
    one_of(
        libc::SYS_ioctl,
        1,
        &[
            KVM_SIGNAL_MSI,
            KVM_GET_CLOCK,
            KVM_SET_USER_MEMORY_REGION,
            KVM_GET_DIRTY_LOG,
        ],
        "interrupts the driver of the serial port, and for the generation id; reads the guest's clock; logs its writes",
    ),
    any(libc::SYS_pwrite64, "writes the snapshot"),
    any(libc::SYS_ftruncate, "sets the size of the file of guest memory"),
    any(
        libc::SYS_fallocate,
        "frees small pages of the file of guest memory that a huge page replaces",
    ),
    any(libc::SYS_fsync, "makes the files of the snapshot stable"),
    any(libc::SYS_fstat, "the id of the file of guest memory"),
    any(
        libc::SYS_newfstatat,
        "as fstat: which of both is made depends on the library",
    ),
];
