//! The worker of virtio-mem: madvise, which every thread may call, and the control socket.

use rustix::thread::CapabilitySet;

use super::{Call, Profile, any, common, worker};

/// The worker of virtio-mem.
pub static PROFILE: Profile = Profile {
    name: "mem",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, worker::INTERRUPT, CALLS],
};

const CALLS: &[Call] = &[any(libc::SYS_sendmsg, "tells the shim that memory is plugged")];
