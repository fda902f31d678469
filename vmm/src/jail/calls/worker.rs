//! System calls of every device's worker thread: its epoll set, which exists before the thread is confined.

use super::{Call, KVM_SIGNAL_MSI, any, one_of};

pub const CALLS: &[Call] = &[
    any(
        libc::SYS_epoll_ctl,
        "adds and removes queues and the device's descriptors",
    ),
    any(libc::SYS_epoll_wait, "waits for events"),
];

/// For devices that make no other ioctl; the others list both.
pub const INTERRUPT: &[Call] = &[one_of(
    libc::SYS_ioctl,
    1,
    &[KVM_SIGNAL_MSI],
    "interrupts the driver",
)];
