//! What a container sees of the host, as data: planned by `bundle`, mounted by `rootfs`.

use std::path::PathBuf;

/// A mount that the caller hands over with Create (a snapshotter's result).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system type, or "bind".
    pub kind: String,
    /// The source: a path, or whatever the file system type expects.
    pub source: String,
    /// The mount point relative to the container's root; empty for the root itself.
    pub target: String,
    /// Options in the notation of mount(8).
    pub options: Vec<String>,
}

/// How a bind mount is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Include the mounts below the source (rbind).
    pub recursive: bool,
    /// Refuse writes, whatever the guest does.
    pub read_only: bool,
}

/// A file or directory of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// The index in the spec's `mounts`.
    pub index: usize,
    /// The path on the host.
    pub source: PathBuf,
    /// Recursive or not, writable or not.
    pub extent: Extent,
}

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory of the host.
    Directory(PathBuf),
    /// Mounts of the snapshotter, from the bottom up.
    Mounts(Vec<Mount>),
}
