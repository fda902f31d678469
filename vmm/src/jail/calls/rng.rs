//! The worker of virtio-rng: getrandom, which every thread may call, and nothing of its own.

use rustix::thread::CapabilitySet;

use super::{Profile, common, worker};

/// The worker of virtio-rng.
pub static PROFILE: Profile = Profile {
    name: "rng",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, worker::INTERRUPT],
};
