//! Behaviours in which Nacre differs from runc, and why. docs/shared-files.md explains those that a user may
//! miss.

use nacre_tests::posix::compare::Allowed;
use nacre_tests::posix::root::Place;

const ACL: &str = "Linux 6.1 does not pass its support of ACLs on to submounts of virtio-fs";
const DIRECT: &str = "O_DIRECT leaves out the guest's cache, not the host's, and has no alignment";
const FUSE: &str = "FUSE has no request for it";
const MODES: &str = "FUSE of Linux 6.1 refuses these modes";
const OVERLAY: &str = "overlayfs of Linux 6.1 does not, but FUSE does";
const TMPFILE: &str = "virtiofsd's library has no O_TMPFILE";

/// On a root file system that is a disk.
pub const ON_DISKS: &[Allowed] = &[rootfs(
    "trusted and other security attributes",
    "the guest's kernel has no security module, without which it asks for CAP_SYS_ADMIN",
    "EPERM ENODATA EPERM ENODATA []",
)];

/// On virtio-fs.
pub const ALLOWED: &[Allowed] = &[
    rootfs(
        "times that a read changes",
        "a read of what the guest has cached does not reach the host, which keeps the times",
        "-",
    ),
    rootfs("times that a write through a mapping changes", OVERLAY, "mc"),
    rootfs("pwritev2 with RWF_APPEND", OVERLAY, "abcx"),
    both(
        "chown to the same owner and set-user-ID",
        "FUSE has no request for a chown that names no owner",
        "755 6755",
    ),
    rootfs("O_DIRECT of what was written without it", DIRECT, "yes yes"),
    both("O_DIRECT at an odd position", DIRECT, "4096 100"),
    volume("O_TMPFILE", TMPFILE, "EOPNOTSUPP"),
    volume("O_TMPFILE that gets a name", TMPFILE, "EOPNOTSUPP"),
    volume("O_TMPFILE with O_EXCL gets no name", TMPFILE, "EOPNOTSUPP"),
    volume("FALLOC_FL_COLLAPSE_RANGE", MODES, "EOPNOTSUPP 8192"),
    volume("FALLOC_FL_INSERT_RANGE", MODES, "EOPNOTSUPP 8192"),
    both(
        "trusted and other security attributes",
        "the VMM has no CAP_SYS_ADMIN",
        "EPERM ENODATA EPERM ENODATA []",
    ),
    both(
        "an access control list gives access",
        ACL,
        "EOPNOTSUPP 644 content EACCES content EACCES",
    ),
    both(
        "an access control list takes access",
        ACL,
        "EOPNOTSUPP content content",
    ),
    both(
        "an access control list that is only a mode",
        ACL,
        "EOPNOTSUPP 644 []",
    ),
    both(
        "a default access control list is inherited",
        ACL,
        "EOPNOTSUPP 644 755 [] [] content",
    ),
    both(
        "access control lists that are refused",
        ACL,
        "EOPNOTSUPP EINVAL EOPNOTSUPP EOPNOTSUPP",
    ),
    both(
        "a file without an access control list",
        ACL,
        "EOPNOTSUPP EOPNOTSUPP []",
    ),
    both("the file system's type", "it is virtio-fs", "65735546"),
    both("flags of an inode", "the file server serves no ioctl", "ENOTTY"),
    both("the time of birth", FUSE, "no"),
];

const fn entry(
    name: &'static str,
    place: Option<Place>,
    reason: &'static str,
    nacre: &'static str,
) -> Allowed {
    Allowed {
        name,
        place,
        reason,
        nacre,
    }
}

const fn both(name: &'static str, reason: &'static str, nacre: &'static str) -> Allowed {
    entry(name, None, reason, nacre)
}

const fn rootfs(name: &'static str, reason: &'static str, nacre: &'static str) -> Allowed {
    entry(name, Some(Place::Rootfs), reason, nacre)
}

const fn volume(name: &'static str, reason: &'static str, nacre: &'static str) -> Allowed {
    entry(name, Some(Place::Volume), reason, nacre)
}

#[cfg(test)]
mod tests {
    use nacre_tests::posix::behaviours;

    use super::*;

    #[test]
    fn every_entry_names_a_behaviour() {
        for entry in ALLOWED {
            assert!(
                behaviours().iter().any(|behaviour| behaviour.name == entry.name),
                "{}",
                entry.name
            );
        }
    }
}
