//! The worker of virtio-balloon: madvise, which every thread may call, and nothing of its own.

use rustix::thread::CapabilitySet;

use super::{Profile, common, worker};

/// The worker of virtio-balloon.
pub static PROFILE: Profile = Profile {
    name: "balloon",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, worker::INTERRUPT],
};
