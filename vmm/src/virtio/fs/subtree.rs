//! How long the guest may cache names and attributes, by the part of the shared tree that they are in. Pure;
//! used by [`super::tree`].
//!
//! ```text
//! /                      Root       not cached: containers are created and deleted
//!   <container>/         Container  not cached
//!     rootfs/…           Rootfs     changed by this guest only: everything cached, absent names, too; files
//!                                   are used without being opened (or ReadOnlyRootfs, if it is one on the host)
//!     lower/…            Rootfs     layers that nobody changes, below a writable layer on a disk
//!     mounts/            Mounts     not cached
//!       <n>/…            HostMount  also changed by the host: names and attributes not cached; a file's
//!                                   cached data is dropped when it is opened again or its mtime changed
//!     kernel/            Kernel     not cached
//!       <n>/…            Kernel     procfs and sysfs of the host: each read is a request, because the size of a
//!                                   file, often 0, is not that of its content
//!     …                  HostMount
//! ```
//! The subtree is stored in the upper bits of the inode number that the guest knows, so there is no table of
//! it. A guest that invents numbers changes its own caching and nothing else.

use std::ffi::CStr;
use std::time::Duration;

use nacre_protocol::guest::{KERNEL_MOUNTS_DIR, LOWER_DIR, MOUNTS_DIR, ROOTFS_DIR};
use virtiofsd::filesystem::Entry;

/// How long the guest caches names and attributes that only this guest changes.
pub const ROOTFS_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Flag of an inode's attributes: only this guest changes it. Known to our guest kernel
/// (`guest-kernel-config/virtio-fs.patch`) and ignored by others, which then open files and refresh
/// attributes.
const ATTR_EXCLUSIVE: u32 = 1 << 31;
/// The lower bits: the library's inode numbers, which count from 1.
const LIBRARY_BITS: u64 = (1 << 61) - 1;
const SUBTREE_SHIFT: u32 = 61;

/// A part of the shared tree with one caching policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subtree {
    /// The root directory.
    Root,
    /// The directory of a container.
    Container,
    /// The directory that holds a container's host mounts.
    Mounts,
    /// A container's root file system.
    Rootfs,
    /// A container's root file system that the host has mounted read-only: opening a file may fail.
    ReadOnlyRootfs,
    /// A host mount. Also the policy for every other name in a container's directory.
    HostMount,
    /// A mount of the host's procfs or sysfs, and the directory that holds such mounts.
    Kernel,
}

impl Subtree {
    /// The subtree of an inode number of the guest.
    pub fn of(inode: u64) -> Self {
        match inode >> SUBTREE_SHIFT {
            0 => Self::Root,
            1 => Self::Container,
            2 => Self::Mounts,
            3 => Self::Rootfs,
            5 => Self::ReadOnlyRootfs,
            6 => Self::Kernel,
            _ => Self::HostMount,
        }
    }

    fn bits(self) -> u64 {
        let number: u64 = match self {
            Self::Root => 0,
            Self::Container => 1,
            Self::Mounts => 2,
            Self::Rootfs => 3,
            Self::HostMount => 4,
            Self::ReadOnlyRootfs => 5,
            Self::Kernel => 6,
        };
        number << SUBTREE_SHIFT
    }

    /// The subtree of the entry `name` of a directory in this subtree.
    pub fn child(self, name: &CStr) -> Self {
        match self {
            Self::Root => Self::Container,
            Self::Container if name.to_bytes() == ROOTFS_DIR.as_bytes() => Self::Rootfs,
            Self::Container if name.to_bytes() == LOWER_DIR.as_bytes() => Self::Rootfs,
            Self::Container if name.to_bytes() == MOUNTS_DIR.as_bytes() => Self::Mounts,
            Self::Container if name.to_bytes() == KERNEL_MOUNTS_DIR.as_bytes() => Self::Kernel,
            Self::Rootfs | Self::ReadOnlyRootfs | Self::Kernel => self,
            Self::Container | Self::Mounts | Self::HostMount => Self::HostMount,
        }
    }

    /// Whether only this guest changes it.
    pub fn is_rootfs(self) -> bool {
        matches!(self, Self::Rootfs | Self::ReadOnlyRootfs)
    }

    /// How long the guest may cache the names in a directory, and the attributes of an inode, of this
    /// subtree.
    pub fn timeout(self) -> Duration {
        if self.is_rootfs() {
            ROOTFS_TIMEOUT
        } else {
            Duration::ZERO
        }
    }
}

/// The library's number of the guest's `inode`.
pub fn library_inode(inode: u64) -> u64 {
    inode & LIBRARY_BITS
}

/// As [`guest_entry`], for an entry that the guest has just made.
pub fn new_guest_entry(entry: Entry, parent: u64, name: &CStr) -> Entry {
    guest_entry(entry, parent, Subtree::of(parent).child(name))
}

/// Turns the library's entry in the guest's inode `parent` into the guest's, which is in `subtree`. The
/// directory decides how long the name is cached (names in a container's directory may become mount points at
/// any time), the entry's inode how long its attributes are.
pub fn guest_entry(mut entry: Entry, parent: u64, subtree: Subtree) -> Entry {
    let directory = Subtree::of(parent);
    entry.inode |= subtree.bits();
    if subtree == Subtree::Rootfs {
        entry.attr.flags |= ATTR_EXCLUSIVE;
    }
    entry.attr_timeout = subtree.timeout();
    entry.entry_timeout = directory.timeout();
    entry
}
