//! The parts of the host's file systems that a container sees, as data: planned by `bundle`, mounted by
//! `rootfs`.

use std::fmt;
use std::path::PathBuf;

use nacre_protocol::guest;
use serde_json::{Value, json};

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

impl IdRange {
    /// As it is in a spec.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"containerID": self.container, "hostID": self.host, "size": self.size})
    }
}

/// The ids that a mount shows instead of those in its file system; or the ids outside of a user namespace of
/// those inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

impl IdMap {
    /// The mappings in a spec's `linux`, or in one of its mounts. Their types have been checked, or whoever reads
    /// them before the check refuses nothing.
    #[must_use]
    pub fn parse(object: &Value) -> Self {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let range = |mapping: &Value| IdRange {
            container: number(&mapping["containerID"]).unwrap_or_default(),
            host: number(&mapping["hostID"]).unwrap_or_default(),
            size: number(&mapping["size"]).unwrap_or_default(),
        };
        let ranges = |list: &Value| list.as_array().into_iter().flatten().map(range).collect();
        Self {
            uids: ranges(&object["uidMappings"]),
            gids: ranges(&object["gidMappings"]),
        }
    }

    /// The ids that user 0 and group 0 become; None for one that is not mapped.
    #[must_use]
    pub fn root(&self) -> (Option<u32>, Option<u32>) {
        let root = |ranges: &[IdRange]| {
            let mut ranges = ranges
                .iter()
                .filter(|range| range.container == 0 && range.size > 0);
            ranges.next().map(|range| range.host)
        };
        (root(&self.uids), root(&self.gids))
    }

    /// Whether it maps no id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

/// The user ids, as "0:100000:65536", and the group ids if they differ.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |ranges: &[IdRange]| {
            let range = |range: &IdRange| format!("{}:{}:{}", range.container, range.host, range.size);
            ranges.iter().map(range).collect::<Vec<_>>().join(",")
        };
        f.write_str(&text(&self.uids))?;
        if self.gids != self.uids {
            write!(f, ", for groups {}", text(&self.gids))?;
        }
        Ok(())
    }
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
    /// The host's kernel makes its files (procfs, sysfs).
    pub is_of_kernel: bool,
    /// The guest may have a copy of it instead, if its directory is as kubelet makes it.
    pub may_be_mirrored: bool,
    /// The number of the shared mount that it is, if containers of the pod share it.
    pub volume: Option<u32>,
}

/// What becomes a disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A path on the host of an image or a block device.
    File(PathBuf),
    /// The number of a block device of the host.
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "disk {}", path.display()),
            Self::Device { major, minor } => write!(f, "block device {major}:{minor}"),
        }
    }
}

impl HostMount {
    /// Its mount point in the shared tree, if `container` has it.
    #[must_use]
    pub fn mount_point(&self, container: &str) -> String {
        if let Some(number) = self.volume {
            return guest::volume_mount_point(number);
        }
        let directory = if self.is_of_kernel {
            guest::KERNEL_MOUNTS_DIR
        } else {
            guest::MOUNTS_DIR
        };
        format!("{container}/{directory}/{}", self.index)
    }
}

/// A disk of the host that a container uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where it is.
    pub source: DiskSource,
    /// The VM can't write it.
    pub read_only: bool,
}

/// A file system on a disk, which the guest mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFileSystem {
    /// The disk.
    pub disk: Disk,
    /// The type of its file system.
    pub kind: String,
    /// Options in the notation of mount(8).
    pub options: Vec<String>,
}

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A disk of the host.
    Disk(DiskFileSystem),
    /// A directory of the host.
    Directory(PathBuf),
    /// Mounts of the snapshotter, bottom first.
    Mounts(Vec<Mount>),
    /// An overlay that the guest puts together.
    Overlay(DiskOverlay),
}

/// An overlay whose writable layer is a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOverlay {
    /// The layers below.
    pub lower: LowerLayers,
    /// The disk's file system, which has or gets the directories `upper` and `work`.
    pub upper: DiskFileSystem,
    /// What the disk is a copy of, if its file does not exist yet. None: it exists.
    pub template: Option<PathBuf>,
    /// Options of the overlay itself.
    pub options: Vec<String>,
}

impl DiskOverlay {
    /// The file systems of its disks: the writable layer, then the layers below, the topmost first.
    pub fn disks(&self) -> impl Iterator<Item = &DiskFileSystem> {
        let lower: &[DiskFileSystem] = match &self.lower {
            LowerLayers::Shared(_) => &[],
            LowerLayers::Disks(layers) => layers,
        };
        std::iter::once(&self.upper).chain(lower)
    }
}

/// Most layers of an overlay that are disks. A VM has at most 24 disks.
pub const MAX_LAYERS: usize = 16;

/// The layers of an overlay that are only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LowerLayers {
    /// The host mounts them, read-only, and shares them.
    Shared(Mount),
    /// Each is a disk; the topmost first.
    Disks(Vec<DiskFileSystem>),
}
