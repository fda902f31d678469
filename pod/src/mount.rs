//! The parts of the host's file systems that a container sees, as data: planned by `bundle`, mounted by
//! `rootfs`.

use std::path::PathBuf;

/// A mount in the caller's Create request, as a snapshotter of containerd returns it.
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

/// The options of a bind mount that the host applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Include the mounts below the source (rbind).
    pub recursive: bool,
    /// Read-only on the host, so that the guest can't write whatever its own mount allows.
    pub read_only: bool,
}

/// A file or directory of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// The index in the spec's `mounts`; also the name of its mount point in the shared tree.
    pub index: usize,
    /// The path on the host.
    pub source: PathBuf,
    /// The mount's options.
    pub extent: Extent,
}

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory of the host.
    Directory(PathBuf),
    /// Mounts of the snapshotter, bottom first.
    Mounts(Vec<Mount>),
}
