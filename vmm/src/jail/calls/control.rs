//! System calls of the main thread once the VM runs: the control socket, the console's input when the VMM
//! runs standalone, and the VM's exit.

use super::{Call, KVM_SET_USER_MEMORY_REGION, KVM_SIGNAL_MSI, any, one_of};

pub const CALLS: &[Call] = &[
    any(
        libc::SYS_poll,
        "waits for the control socket, the VM's exit, a key on the terminal",
    ),
    any(libc::SYS_recvmsg, "receives from the control socket"),
    any(libc::SYS_sendmsg, "sends on the control socket"),
    any(
        libc::SYS_pread64,
        "reads KVM's statistics, for the counts of VM exits",
    ),
    one_of(
        libc::SYS_ioctl,
        1,
        &[KVM_SIGNAL_MSI, KVM_SET_USER_MEMORY_REGION],
        "interrupts the driver of the serial port and of virtio-mem; maps memory that is plugged in",
    ),
    any(libc::SYS_pwrite64, "writes the console's last line to its ring"),
];
