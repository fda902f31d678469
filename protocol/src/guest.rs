//! Names that both the host and the guest use: the shared tree, and the kernel command line's keys.

/// virtio-fs tag of the tree that a pod shares with its guest.
pub const SHARED_TAG: &str = "nacre";
/// Where the agent mounts that tree.
pub const SHARED_MOUNT: &str = "/run/nacre/shared";
/// In a container's directory of the shared tree: its root file system.
pub const ROOTFS_DIR: &str = "rootfs";
/// In a container's directory of the shared tree: one entry, named by its index in the spec, per host mount.
pub const MOUNTS_DIR: &str = "mounts";

/// A container's root file system as the guest sees it.
#[must_use]
pub fn rootfs_path(container_id: &str) -> String {
    format!("{SHARED_MOUNT}/{container_id}/{ROOTFS_DIR}")
}

/// The `index`th host mount of a container as the guest sees it.
#[must_use]
pub fn mount_path(container_id: &str, index: usize) -> String {
    format!("{SHARED_MOUNT}/{container_id}/{MOUNTS_DIR}/{index}")
}

/// Begins the `path` of a namespace that is another container's.
pub const NAMESPACE_OF: &str = "container:";

/// The `path` of a namespace that is container `container_id`'s of the same kind, in the guest's spec.
#[must_use]
pub fn namespace_of(container_id: &str) -> String {
    format!("{NAMESPACE_OF}{container_id}")
}
