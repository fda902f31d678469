//! The options of a mount, word by word (`mounts[].options[]`). What is in no table is a setting of the file system that
//! is mounted, as `size=64m` is; a bind has none of its own.

/// How a mount comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A part of the host's files.
    HostBind,
    /// A file system that the guest's kernel makes.
    InGuest,
}

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionFate {
    /// It has its effect.
    Applied,
    /// Left out, and named in the log with this reason.
    Ignored(&'static str),
    /// Refused for this reason.
    Refused(&'static str),
}

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOption {
    /// The word.
    pub word: &'static str,
    /// What becomes of it on a file system that the guest makes.
    pub in_guest: OptionFate,
    /// What becomes of it on a bind of the host's files.
    pub host_bind: OptionFate,
}

use OptionFate::{Applied, Ignored, Refused};

const ONLY_LOG: OptionFate = Ignored("it is about the kernel's log alone");
const OF_THE_FILE_SYSTEM: OptionFate =
    Ignored("it belongs to the file system below the bind, which is mounted already");
const FROM_THE_HOST: OptionFate =
    Refused("what the host mounts later can't come into a guest, nor go the other way");
const NO_VERSIONS: OptionFate = Refused("no file system of a guest counts versions");
const NO_LOCKS: OptionFate = Refused("kernels have no mandatory locks any more");
const NO_SECOND_TIME: OptionFate = Refused("each mount is a new one: its options are given where it is made");
const NO_ID_MAPS: OptionFate =
    Refused("files shared with a guest can't be mapped to other ids by its kernel");
const NO_COPY: OptionFate = Refused("nothing copies what the image has there");

const fn both(word: &'static str, fate: OptionFate) -> MountOption {
    MountOption {
        word,
        in_guest: fate,
        host_bind: fate,
    }
}

const fn differing(word: &'static str, in_guest: OptionFate, host_bind: OptionFate) -> MountOption {
    MountOption {
        word,
        in_guest,
        host_bind,
    }
}

/// The specification's table.
pub static OPTIONS: &[MountOption] = &[
    both("async", Applied),
    both("atime", Applied),
    both("bind", Applied),
    both("defaults", Applied),
    both("dev", Applied),
    both("diratime", Applied),
    differing("dirsync", Applied, OF_THE_FILE_SYSTEM),
    both("exec", Applied),
    differing("iversion", NO_VERSIONS, OF_THE_FILE_SYSTEM),
    differing("lazytime", Applied, OF_THE_FILE_SYSTEM),
    both("loud", ONLY_LOG),
    both("mand", NO_LOCKS),
    both("noatime", Applied),
    both("nodev", Applied),
    both("nodiratime", Applied),
    both("noexec", Applied),
    both("noiversion", Applied),
    both("nolazytime", Applied),
    both("nomand", Applied),
    both("norelatime", Applied),
    both("nostrictatime", Applied),
    both("nosuid", Applied),
    both("nosymfollow", Applied),
    both("private", Applied),
    both("ratime", Applied),
    both("rbind", Applied),
    both("rdev", Applied),
    both("rdiratime", Applied),
    both("relatime", Applied),
    both("remount", NO_SECOND_TIME),
    both("rexec", Applied),
    both("rnoatime", Applied),
    both("rnodev", Applied),
    both("rnodiratime", Applied),
    both("rnoexec", Applied),
    both("rnorelatime", Applied),
    both("rnostrictatime", Applied),
    both("rnosuid", Applied),
    both("rnosymfollow", Applied),
    both("ro", Applied),
    both("rprivate", Applied),
    both("rrelatime", Applied),
    both("rro", Applied),
    both("rrw", Applied),
    differing("rshared", Applied, FROM_THE_HOST),
    differing("rslave", Applied, FROM_THE_HOST),
    both("rstrictatime", Applied),
    both("rsuid", Applied),
    both("rsymfollow", Applied),
    both("runbindable", Applied),
    both("rw", Applied),
    differing("shared", Applied, FROM_THE_HOST),
    both("silent", ONLY_LOG),
    differing("slave", Applied, FROM_THE_HOST),
    both("strictatime", Applied),
    both("suid", Applied),
    both("symfollow", Applied),
    differing("sync", Applied, OF_THE_FILE_SYSTEM),
    both("tmpcopyup", NO_COPY),
    both("unbindable", Applied),
    both("idmap", NO_ID_MAPS),
];

/// The file systems that the guest's kernel makes for a container.
pub const FILE_SYSTEMS: [&str; 9] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
];

/// What becomes of `word` on a mount of `kind`.
#[must_use]
pub fn option(word: &str, kind: MountKind) -> OptionFate {
    let word = if word == "ridmap" { "idmap" } else { word };
    match (OPTIONS.iter().find(|option| option.word == word), kind) {
        (Some(option), MountKind::InGuest) => option.in_guest,
        (Some(option), MountKind::HostBind) => option.host_bind,
        (None, MountKind::InGuest) => Applied,
        (None, MountKind::HostBind) => OF_THE_FILE_SYSTEM,
    }
}
