//! The worker of virtio-vsock: its streams are Unix sockets. It opens no file and connects to no address.

use rustix::thread::CapabilitySet;

use super::{Call, KVM_SIGNAL_MSI, Profile, any, common, one_of, worker};

/// The worker of virtio-vsock under the shim.
pub static PROFILE: Profile = Profile {
    name: "vsock",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, STREAMS, SHIM],
};

/// The worker of virtio-vsock with a listener, in standalone mode.
pub static STANDALONE: Profile = Profile {
    name: "standalone vsock",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, STREAMS, LISTENER],
};

const STREAMS: &[Call] = &[
    one_of(
        libc::SYS_socketpair,
        0,
        &[libc::AF_UNIX as u64],
        "a new stream: this end of the pair stays here",
    ),
    any(libc::SYS_shutdown, "closes one direction of a stream"),
    one_of(
        libc::SYS_ioctl,
        1,
        &[libc::FIONBIO, KVM_SIGNAL_MSI],
        "makes a stream non-blocking; interrupts the driver",
    ),
];

const SHIM: &[Call] = &[
    any(
        libc::SYS_pread64,
        "looks up the address of a connection in the stream table",
    ),
    any(libc::SYS_sendmsg, "sends the other end of the pair to the shim"),
];

const LISTENER: &[Call] = &[any(libc::SYS_accept4, "accepts a client")];
