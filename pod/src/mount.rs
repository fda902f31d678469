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

/// A range of ids of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the file system.
    pub container: u32,
    /// The first id that the mount shows instead.
    pub host: u32,
    /// The number of ids.
    pub size: u32,
}

/// The ids that a mount shows instead of those in its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
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
    /// Its id map, and whether that also applies to the mounts below the source.
    pub id_map: Option<(IdMap, bool)>,
}

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory of the host.
    Directory(PathBuf),
    /// Mounts of the snapshotter, bottom first.
    Mounts(Vec<Mount>),
}
