//! The file server (virtio-fs): everything that virtiofsd's library asks of the kernel to serve the shared tree, from
//! its one thread. Not open_by_handle_at, which opens files outside of the tree.

use super::{Call, any, options};

pub const CALLS: &[Call] = &[
    // The event loop.
    any(libc::SYS_epoll_create1, "a loop of its own for each activation"),
    any(libc::SYS_epoll_ctl, "queues come and go"),
    any(libc::SYS_epoll_wait, "waits"),
    any(libc::SYS_epoll_pwait, "waits"),
    any(libc::SYS_poll, "waits for one descriptor"),
    any(libc::SYS_eventfd2, "event descriptors"),
    // Looking.
    any(libc::SYS_openat, "lookup, open, opendir, /proc/self/fd"),
    any(libc::SYS_openat2, "the same, resolved below a directory"),
    any(libc::SYS_fstat, "getattr"),
    any(libc::SYS_newfstatat, "getattr"),
    any(libc::SYS_statx, "getattr, with the mount's id"),
    any(libc::SYS_fstatfs, "statfs"),
    any(libc::SYS_readlinkat, "readlink"),
    any(libc::SYS_getdents64, "readdir"),
    any(libc::SYS_lseek, "readdir, seek"),
    any(
        libc::SYS_name_to_handle_at,
        "asks for the mount's id where statx does not tell",
    ),
    any(libc::SYS_fgetxattr, "getxattr"),
    any(libc::SYS_getxattr, "getxattr of what can't be opened"),
    any(libc::SYS_flistxattr, "listxattr"),
    any(libc::SYS_listxattr, "listxattr of what can't be opened"),
    // Reading and writing.
    any(libc::SYS_pread64, "read"),
    any(libc::SYS_preadv, "read, straight into guest memory"),
    any(libc::SYS_preadv2, "read, straight into guest memory"),
    any(libc::SYS_pwrite64, "write"),
    any(libc::SYS_pwritev, "write, straight from guest memory"),
    any(libc::SYS_pwritev2, "write, straight from guest memory"),
    any(libc::SYS_copy_file_range, "copy_file_range"),
    any(libc::SYS_fallocate, "fallocate"),
    any(libc::SYS_ftruncate, "setattr of the size"),
    any(libc::SYS_fsync, "fsync"),
    any(libc::SYS_fdatasync, "fsync of data"),
    any(libc::SYS_syncfs, "syncfs"),
    any(libc::SYS_flock, "flock"),
    any(libc::SYS_dup, "flush: closes a duplicate"),
    // Changing the tree.
    any(libc::SYS_mkdirat, "mkdir"),
    any(libc::SYS_mknodat, "mknod"),
    any(libc::SYS_symlinkat, "symlink"),
    any(libc::SYS_linkat, "link"),
    any(libc::SYS_unlinkat, "unlink, rmdir"),
    any(libc::SYS_renameat2, "rename"),
    any(libc::SYS_fchmod, "setattr of the mode"),
    any(libc::SYS_fchmodat, "setattr of the mode of what can't be opened"),
    any(libc::SYS_fchownat, "setattr of the owner"),
    any(libc::SYS_utimensat, "setattr of times"),
    any(libc::SYS_fsetxattr, "setxattr"),
    any(libc::SYS_setxattr, "setxattr of what can't be opened"),
    any(libc::SYS_fremovexattr, "removexattr"),
    any(libc::SYS_removexattr, "removexattr of what can't be opened"),
    // As whom.
    any(libc::SYS_geteuid, "is a change of user needed"),
    any(libc::SYS_getegid, "is a change of group needed"),
    any(
        libc::SYS_setresuid,
        "creates as the guest's user, this thread only",
    ),
    any(
        libc::SYS_setresgid,
        "creates as the guest's group, this thread only",
    ),
    any(
        libc::SYS_setgroups,
        "creates with the guest's supplementary group",
    ),
    any(
        libc::SYS_capget,
        "drops FSETID around a write that clears set-id bits, and takes it back",
    ),
    any(libc::SYS_capset, "the same; nothing beyond the permitted set"),
    options(
        libc::SYS_prctl,
        &[
            (libc::PR_CAPBSET_READ as u64, None),
            (libc::PR_GET_SECUREBITS as u64, None),
            (libc::PR_GET_NO_NEW_PRIVS as u64, None),
            (
                libc::PR_CAP_AMBIENT as u64,
                Some(libc::PR_CAP_AMBIENT_IS_SET as u64),
            ),
        ],
        "the same: libcap-ng reads all there is about capabilities first",
    ),
    any(
        libc::SYS_fchdir,
        "xattrs of what can't be opened, by /proc/self/fd",
    ),
    any(
        libc::SYS_umask,
        "creates with the guest's umask, this thread only",
    ),
];
