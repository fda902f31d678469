//! Names that both the shim and the agent use: paths in the shared tree, cgroups, and namespaces of other
//! containers.

/// The virtio-fs tag of the tree of directories that the host shares with the guest.
pub const SHARED_TAG: &str = "nacre";
/// Where the agent mounts the shared tree. It has one directory per container, named after the id.
pub const SHARED_MOUNT: &str = "/run/nacre/shared";
/// In a container's directory of the shared tree: the mount point of its root file system.
pub const ROOTFS_DIR: &str = "rootfs";
/// In a container's directory of the shared tree, if its writable layer is a disk: the mount point of the layers
/// below.
pub const LOWER_DIR: &str = "lower";
/// In a container's directory of the shared tree: the mount points of its bind mounts, each named after its
/// index in the spec's `mounts`.
pub const MOUNTS_DIR: &str = "mounts";
/// In a container's directory of the shared tree: the same for bind mounts of the host's procfs and sysfs, whose files
/// have content that their size does not tell.
pub const KERNEL_MOUNTS_DIR: &str = "kernel";

/// The path in the guest of a container's root file system, such as "/run/nacre/shared/ID/rootfs".
#[must_use]
pub fn rootfs_path(container_id: &str) -> String {
    format!("{SHARED_MOUNT}/{container_id}/{ROOTFS_DIR}")
}

/// The path in the guest of `mount_point` of the shared tree, such as "/run/nacre/shared/ID/mounts/3".
#[must_use]
pub fn shared_path(mount_point: &str) -> String {
    format!("{SHARED_MOUNT}/{mount_point}")
}

/// Where the agent mounts the file systems of disks.
const DISKS_MOUNT: &str = "/run/nacre/disks";

/// The path in the guest of a container's root file system that is on a disk, such as
/// "/run/nacre/disks/ID/rootfs".
#[must_use]
pub fn disk_rootfs_path(container_id: &str) -> String {
    format!("{DISKS_MOUNT}/{container_id}/{ROOTFS_DIR}")
}

/// The directory in the guest of the mount points of a container's disks, such as "/run/nacre/disks/ID".
#[must_use]
pub fn disks_path(container_id: &str) -> String {
    format!("{DISKS_MOUNT}/{container_id}")
}

/// In the shared tree: the directory of a directory of the host that containers of the pod share. It has one mount,
/// number 0 in [`MOUNTS_DIR`]. Not the id of a container.
#[must_use]
pub fn volume_directory(number: u32) -> String {
    format!("{VOLUME_PREFIX}{number}")
}

/// The mount point of shared volume `number` in the shared tree, such as ".volume-3/mounts/0".
#[must_use]
pub fn volume_mount_point(number: u32) -> String {
    format!("{}/{MOUNTS_DIR}/0", volume_directory(number))
}

/// Whether `name` is one that [`volume_directory`] returns.
#[must_use]
pub fn is_volume_directory(name: &str) -> bool {
    let number = name.strip_prefix(VOLUME_PREFIX).map(str::parse::<u32>);
    matches!(number, Some(Ok(number)) if volume_directory(number) == name)
}

const VOLUME_PREFIX: &str = ".volume-";

/// The pod's /dev/shm in the guest, a tmpfs: the source of a bind mount in the guest's spec.
pub const POD_SHM: &str = "/run/nacre/shm";

/// In the guest: the mirrors, each a directory named after its number. A mirror is a copy in a tmpfs of a directory
/// of the host that changes while containers read it.
pub const MIRRORS: &str = "/run/nacre/mirror";
/// In a mirror's directory: the copy, which containers mount.
pub const MIRROR_FILES: &str = "files";
/// Most bytes of files in a mirror. The tmpfs has room for twice as much, because a new version is complete before
/// the old one is removed.
pub const MAX_MIRROR_BYTES: u64 = 64 << 20;
/// Most files, directories and symbolic links of a mirror. The tmpfs has room for twice as many.
pub const MAX_MIRROR_ENTRIES: u32 = 16 * 1024;
/// Longest path of a file in a mirror, and longest target of a link (PATH_MAX without its NUL), bytes.
pub const MAX_MIRROR_PATH: usize = 4095;
/// Most operations of one ChangeMirror.
pub const MAX_MIRROR_OPERATIONS: usize = 1024;

/// The path in the guest that containers mount of mirror `number`, such as "/run/nacre/mirror/3/files".
#[must_use]
pub fn mirror_path(number: u32) -> String {
    format!("{MIRRORS}/{number}/{MIRROR_FILES}")
}

/// The `linux.namespaces[].path`, in the guest's spec, of the namespace that a pod's containers share and no
/// container holds.
pub const POD_NAMESPACE: &str = "pod:";

/// The files of a cgroup that are counters of each controller, and the limits that metrics show: those of a
/// container, which the agent reads, and those of the pod on the host.
pub const CGROUP_COUNTERS: [&str; 15] = [
    "cpu.pressure",
    "cpu.stat",
    "io.pressure",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "memory.swap.peak",
    "pids.current",
    "pids.max",
];
/// Most bytes of one of them that are read; the rest is cut off.
pub const MAX_COUNTER_BYTES: u64 = 64 * 1024;

/// Prefix of a `linux.namespaces[].path` that is the namespace of another container.
pub const NAMESPACE_OF: &str = "container:";

/// The `linux.namespaces[].path`, in the guest's spec, of the namespace of the same type of container
/// `container_id`.
#[must_use]
pub fn namespace_of(container_id: &str) -> String {
    format!("{NAMESPACE_OF}{container_id}")
}

/// The cgroup of the guest that has those of all containers, below its root cgroup.
pub const CONTAINERS_CGROUP: &str = "containers";

/// The `linux.cgroupsPath`, in the guest's spec, of a container.
#[must_use]
pub fn cgroup_path(container_id: &str) -> String {
    format!("/{CONTAINERS_CGROUP}/{container_id}")
}

/// A word of the kernel command line, which the kernel passes to the agent as an argument: the VM is going to
/// be saved to a snapshot. The agent prepares everything before it dials the host, writes [`TEMPLATE_READY`],
/// and waits for the end of that stream, which is the beginning of its next life: it dials again.
pub const TEMPLATE: &str = "nacre-template";
/// The byte by which an agent reports that its VM can be saved.
pub const TEMPLATE_READY: u8 = b'R';
/// The byte that the VMM writes to that stream, before it ends it, if the guest goes on only to rehearse a pod's
/// start: in the VMM that has saved it, and no other. There the agent sets itself up and runs a container of its own,
/// and then writes a report to the stream of its next life. The stream of a pod's guest is reset without a byte.
pub const REHEARSE: u8 = b'P';
/// The report of a rehearsal that has succeeded. Another one is the text of an error.
pub const REHEARSED: &[u8] = b"rehearsed";
/// Longest report of a rehearsal, bytes: it is sent at once.
pub const MAX_REHEARSAL_REPORT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_volumes_are_told_from_those_of_containers() {
        for number in [0, 7, u32::MAX] {
            let name = volume_directory(number);
            assert!(
                is_volume_directory(&name) && !crate::container_id::is_valid(&name),
                "{name}"
            );
        }
        for other in [
            "",
            "volume-1",
            ".volume-",
            ".volume-01",
            ".volume-+1",
            ".volume-1/..",
            ".volume-4294967296",
        ] {
            assert!(!is_volume_directory(other), "{other}");
        }
    }
}
