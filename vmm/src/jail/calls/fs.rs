//! The file server's thread (virtio-fs): what virtiofsd's library needs to serve the shared tree on behalf of
//! any user of the guest. Each reason names the FUSE request. Without open_by_handle_at, which opens files
//! outside of the tree.

use rustix::thread::CapabilitySet;

use super::{Call, Profile, any, common, options, worker};

/// The worker of virtio-fs.
pub static PROFILE: Profile = Profile {
    name: "fs",
    capabilities: CAPABILITIES,
    own_working_directory: true,
    calls: &[common::CALLS, worker::CALLS, worker::INTERRUPT, CALLS],
};

/// The thread of requests that wait for the host's disk.
pub static SYNC_PROFILE: Profile = Profile {
    name: "fs-sync",
    capabilities: CapabilitySet::DAC_OVERRIDE, // syncfs opens a directory of any owner
    own_working_directory: false,
    calls: &[common::CALLS, SYNC_CALLS],
};

const SYNC_CALLS: &[Call] = &[
    any(libc::SYS_fsync, "fsync"),
    any(libc::SYS_fdatasync, "fsync of data"),
    any(libc::SYS_syncfs, "syncfs"),
    any(libc::SYS_openat, "syncfs: reopens a descriptor by /proc/self/fd"),
];

/// CAP_DAC_READ_SEARCH is left out because it permits open_by_handle_at, which opens any file of a file
/// system, also outside of the shared tree; CAP_DAC_OVERRIDE covers everything else that it permits.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN // chown by the guest's root
    .union(CapabilitySet::DAC_OVERRIDE) // access by the guest's root to files of other users
    .union(CapabilitySet::FOWNER) // chmod, utimes and sticky directories by the guest's root
    .union(CapabilitySet::FSETID) // keeps set-user-ID and set-group-ID bits if the guest's kernel says so
    .union(CapabilitySet::SETUID) // creates files as the guest's user
    .union(CapabilitySet::SETGID) // creates files as the guest's group
    .union(CapabilitySet::MKNOD) // device nodes and overlay whiteouts
    .union(CapabilitySet::SETFCAP); // the extended attribute security.capability

const CALLS: &[Call] = &[
    // Reading the tree.
    any(
        libc::SYS_openat,
        "lookup, open, opendir; reopens a descriptor by /proc/self/fd",
    ),
    any(
        libc::SYS_openat2,
        "lookup, open and create, resolved below a directory",
    ),
    any(
        libc::SYS_newfstatat,
        "as capget: libcap-ng reads /proc/self/status if that exists: in tests, and in a standalone VMM's share",
    ),
    any(
        libc::SYS_fstat,
        "as newfstatat, which the C library uses instead before glibc 2.39",
    ),
    any(libc::SYS_statx, "lookup, getattr"),
    any(libc::SYS_fstatfs, "statfs"),
    any(libc::SYS_readlinkat, "readlink"),
    any(libc::SYS_getdents64, "readdir"),
    any(libc::SYS_lseek, "readdir, seek"),
    any(libc::SYS_fgetxattr, "getxattr"),
    any(
        libc::SYS_getxattr,
        "getxattr of a file that can't be opened (link, device node)",
    ),
    any(libc::SYS_flistxattr, "listxattr"),
    any(libc::SYS_listxattr, "listxattr of a file that can't be opened"),
    // File data.
    any(libc::SYS_preadv2, "read, directly into guest memory"),
    any(libc::SYS_pwritev2, "write, directly from guest memory"),
    any(libc::SYS_copy_file_range, "copy_file_range"),
    any(libc::SYS_fallocate, "fallocate"),
    any(libc::SYS_ftruncate, "setattr of the size"),
    any(libc::SYS_fsync, "fsync"),
    any(libc::SYS_fdatasync, "fsync of data"),
    any(libc::SYS_syncfs, "syncfs"),
    any(libc::SYS_dup, "flush: closes a duplicate"),
    // Changing the tree.
    any(libc::SYS_mkdirat, "mkdir"),
    any(libc::SYS_mknodat, "mknod"),
    any(libc::SYS_symlinkat, "symlink"),
    any(libc::SYS_linkat, "link"),
    any(libc::SYS_unlinkat, "unlink, rmdir"),
    any(libc::SYS_renameat2, "rename"),
    any(libc::SYS_fchmod, "setattr of the mode"),
    any(
        libc::SYS_fchmodat,
        "setattr of the mode of a file that can't be opened",
    ),
    any(libc::SYS_fchownat, "setattr of the owner"),
    any(libc::SYS_utimensat, "setattr of times"),
    any(libc::SYS_fsetxattr, "setxattr"),
    any(libc::SYS_setxattr, "setxattr of a file that can't be opened"),
    any(libc::SYS_fremovexattr, "removexattr"),
    any(
        libc::SYS_removexattr,
        "removexattr of a file that can't be opened",
    ),
    // Credentials.
    any(libc::SYS_geteuid, "checks whether the user must be changed"),
    any(libc::SYS_getegid, "checks whether the group must be changed"),
    any(
        libc::SYS_setresuid,
        "creates a file as the guest's user; changes this thread only",
    ),
    any(
        libc::SYS_setresgid,
        "creates a file as the guest's group; changes this thread only",
    ),
    any(
        libc::SYS_setgroups,
        "creates a file with the guest's supplementary group",
    ),
    any(
        libc::SYS_capget,
        "keeps CAP_DAC_OVERRIDE while it creates a file as the guest's user; drops CAP_FSETID to clear bits",
    ),
    any(libc::SYS_capset, "as capget; can't exceed the permitted set"),
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
        "as capget: libcap-ng first reads the whole state of capabilities",
    ),
    any(
        libc::SYS_fchdir,
        "xattrs of a file that can't be opened, by /proc/self/fd",
    ),
    any(
        libc::SYS_umask,
        "creates a file with the guest's umask; changes this thread only",
    ),
];
