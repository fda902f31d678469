//! How long the guest may keep what it was told, by the place in the tree. Pure; used by [`super::tree`].
//!
//! ```text
//! /                      Top      nothing cached: containers come and go
//!   <container>/         Top
//!     rootfs/…           Rootfs   only this guest changes it: everything cached, what is not there as well
//!     mounts/            Top
//!       <n>/…            Host     the host changes it, too: nothing outlives a call; file data is
//!                                 dropped when a file is opened anew or its time has changed
//!     …                  Host
//! ```
//! The place stands in the upper bits of the number by which the guest knows an inode, so there is no table of it. A
//! guest that makes up numbers changes its own caching and nothing else.

use std::ffi::CStr;
use std::time::Duration;

use nacre_protocol::guest::{MOUNTS_DIR, ROOTFS_DIR};
use virtiofsd::filesystem::Entry;

/// How long the guest keeps what only it changes.
pub const LONG: Duration = Duration::from_secs(24 * 60 * 60);
/// Bits of the library's inode numbers, which count from 1.
const NUMBER: u64 = (1 << 61) - 1;
const PLACE_SHIFT: u32 = 61;

/// Where in the tree an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The root.
    Root,
    /// A container's directory.
    Container,
    /// Where its host mounts are.
    Mounts,
    /// In its root file system.
    Rootfs,
    /// In a host mount, or anywhere else.
    Host,
}

impl Place {
    /// Where the guest's `inode` is.
    pub fn of(inode: u64) -> Self {
        match inode >> PLACE_SHIFT {
            0 => Self::Root,
            1 => Self::Container,
            2 => Self::Mounts,
            3 => Self::Rootfs,
            _ => Self::Host,
        }
    }

    fn bits(self) -> u64 {
        let number: u64 = match self {
            Self::Root => 0,
            Self::Container => 1,
            Self::Mounts => 2,
            Self::Rootfs => 3,
            Self::Host => 4,
        };
        number << PLACE_SHIFT
    }

    /// Where `name` in this place is.
    pub fn child(self, name: &CStr) -> Self {
        match self {
            Self::Root => Self::Container,
            Self::Container if name.to_bytes() == ROOTFS_DIR.as_bytes() => Self::Rootfs,
            Self::Container if name.to_bytes() == MOUNTS_DIR.as_bytes() => Self::Mounts,
            Self::Rootfs => Self::Rootfs,
            Self::Container | Self::Mounts | Self::Host => Self::Host,
        }
    }

    /// How long names and attributes in this place hold.
    pub fn timeout(self) -> Duration {
        if self == Self::Rootfs {
            LONG
        } else {
            Duration::ZERO
        }
    }
}

/// The library's number of an inode.
pub fn number(inode: u64) -> u64 {
    inode & NUMBER
}

/// The library's entry for `name` in `parent` as the guest gets it. How long the name holds is the directory's matter (a
/// container's own directories may become mount points at any time), how long the attributes do is the inode's.
pub fn placed(mut entry: Entry, parent: u64, name: &CStr) -> Entry {
    let directory = Place::of(parent);
    let place = directory.child(name);
    entry.inode |= place.bits();
    entry.attr_timeout = place.timeout();
    entry.entry_timeout = directory.timeout();
    entry
}
