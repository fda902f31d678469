//! The worker of virtio-blk: requests go to its file, which is open already. It opens no other.

use rustix::thread::CapabilitySet;

use super::{Call, Profile, any, common, worker};

/// The worker of virtio-blk. The operations of its ring pass no filter; the ring is restricted to the disk's
/// file (`crate::virtio::blk`).
pub static PROFILE: Profile = Profile {
    name: "blk",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, worker::CALLS, worker::INTERRUPT, CALLS],
};

/// Of the main thread, too, which creates the worker of a disk that is added later.
pub(super) const CALLS: &[Call] = &[
    any(libc::SYS_io_uring_enter, "submits operations, and waits for them"),
    any(libc::SYS_preadv, "reads from the disk, without io_uring"),
    any(libc::SYS_pwritev, "writes to the disk, without io_uring"),
    any(libc::SYS_fdatasync, "makes writes stable, without io_uring"),
    any(
        libc::SYS_fallocate,
        "discards bytes and writes zeros, without io_uring",
    ),
];
