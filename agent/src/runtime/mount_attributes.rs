//! mount_setattr(2), which has no safe wrapper. Used for a container's mounts and for those that the guest
//! sees of the host; never follows a path: a mount is named by a descriptor.
#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `struct mount_attr` of linux/mount.h: what changes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear before that.
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE; 0 for no change.
    pub propagation: u64,
    /// A user namespace, for an id map; unused here.
    pub users: u64,
}

impl Change {
    /// Sets these attributes.
    pub fn set(attributes: u64) -> Self {
        Self {
            set: attributes,
            ..Self::default()
        }
    }

    /// Sets this propagation type, MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE.
    pub fn propagation(kind: u64) -> Self {
        Self {
            propagation: kind,
            ..Self::default()
        }
    }

    /// Applies it to the mount whose root is open as `mount`; with `below`, also to all mounts below.
    ///
    /// # Errors
    /// The errno of mount_setattr(2): EINVAL if `mount` is not the root of a mount.
    pub fn apply(&self, mount: BorrowedFd<'_>, below: bool) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        let flags = libc::AT_EMPTY_PATH | if below { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the path is an empty string, and the structure has the layout and the size that the call is
        // told; both outlive it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const *self,
                size_of::<Self>(),
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
