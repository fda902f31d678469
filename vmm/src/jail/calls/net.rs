//! The worker of virtio-net: packets go through its taps, which the shim opened. It opens no interface and no
//! socket.

use rustix::thread::CapabilitySet;

use super::{Call, KVM_SIGNAL_MSI, Profile, any, common, one_of, worker};

/// The worker of virtio-net.
pub static PROFILE: Profile = Profile {
    name: "net",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, CALLS],
};

/// Packets to a tap are written by writev, which every thread may call.
const CALLS: &[Call] = &[
    any(
        libc::SYS_readv,
        "reads a packet from the tap, directly into guest memory",
    ),
    one_of(
        libc::SYS_sched_setscheduler,
        1,
        &[libc::SCHED_OTHER as u64, libc::SCHED_BATCH as u64],
        "waits its turn while much data flows, which needs no privilege",
    ),
    one_of(
        libc::SYS_ioctl,
        1,
        &[libc::TUNSETOFFLOAD, libc::TUNSETQUEUE, KVM_SIGNAL_MSI],
        "sets the offloads that the driver accepts, and the queues that it uses; interrupts the driver",
    ),
];
