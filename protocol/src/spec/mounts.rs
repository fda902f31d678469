//! Mounts of a spec: how each option of `mounts[].options[]` is handled, and which file systems the guest can
//! mount. An option that is not in the table is one of the mounted file system, such as `size=64m`; a bind
//! mount has none.

use serde_json::Value;

use super::findings::{Findings, quoted};
use super::schema::join;

/// Where a mount's files come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the host: a bind mount.
    HostBind,
    /// A file system that the guest kernel mounts.
    InGuest,
}

/// How a mount option is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionHandling {
    /// It has its effect.
    Applied,
    /// It is removed from the spec, and reported with this reason.
    Ignored(&'static str),
    /// The spec is refused with this reason.
    Refused(&'static str),
}

/// A mount option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOption {
    /// The option as it is written in the spec.
    pub name: &'static str,
    /// How it is handled on a file system of the guest.
    pub in_guest: OptionHandling,
    /// How it is handled on a bind mount.
    pub host_bind: OptionHandling,
}

use OptionHandling::{Applied, Ignored, Refused};

const ONLY_LOG: OptionHandling = Ignored("affects kernel log messages only");
const OF_FILE_SYSTEM: OptionHandling =
    Ignored("an option of the bind mount's file system, which is already mounted");
const NO_PROPAGATION: OptionHandling = Refused("mounts cannot propagate between host and guest");
const NO_I_VERSION: OptionHandling = Refused("no file system of the guest supports i_version");
const NO_LOCKS: OptionHandling = Refused("Linux has no mandatory locks since 5.15");
const NO_REMOUNT: OptionHandling =
    Refused("a container's mounts are always new; set the options on the mount itself");
const NO_ID_MAPS: OptionHandling = Refused("only a bind mount can be id-mapped");
const ONLY_TMPFS: OptionHandling = Ignored("only a tmpfs gets a copy");

/// Copies what a tmpfs covers into it.
const COPY_UP: &str = "tmpcopyup";

const fn both(name: &'static str, handling: OptionHandling) -> MountOption {
    MountOption {
        name,
        in_guest: handling,
        host_bind: handling,
    }
}

const fn differing(name: &'static str, in_guest: OptionHandling, host_bind: OptionHandling) -> MountOption {
    MountOption {
        name,
        in_guest,
        host_bind,
    }
}

/// The options that the specification defines.
pub static OPTIONS: &[MountOption] = &[
    both("async", Applied),
    both("atime", Applied),
    both("bind", Applied),
    both("defaults", Applied),
    both("dev", Applied),
    both("diratime", Applied),
    differing("dirsync", Applied, OF_FILE_SYSTEM),
    both("exec", Applied),
    differing("iversion", NO_I_VERSION, OF_FILE_SYSTEM),
    differing("lazytime", Applied, OF_FILE_SYSTEM),
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
    both("remount", NO_REMOUNT),
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
    differing("rshared", Applied, NO_PROPAGATION),
    differing("rslave", Applied, NO_PROPAGATION),
    both("rstrictatime", Applied),
    both("rsuid", Applied),
    both("rsymfollow", Applied),
    both("runbindable", Applied),
    both("rw", Applied),
    differing("shared", Applied, NO_PROPAGATION),
    both("silent", ONLY_LOG),
    differing("slave", Applied, NO_PROPAGATION),
    both("strictatime", Applied),
    both("suid", Applied),
    both("symfollow", Applied),
    differing("sync", Applied, OF_FILE_SYSTEM),
    differing(COPY_UP, Applied, ONLY_TMPFS),
    both("unbindable", Applied),
    differing("idmap", NO_ID_MAPS, Applied),
];

/// The file systems that a container can have mounted in the guest, as `mounts[].type`.
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

/// How the option `name` is handled on a mount of `kind`.
#[must_use]
pub fn option(name: &str, kind: MountKind) -> OptionHandling {
    let name = if name == "ridmap" { "idmap" } else { name };
    match (OPTIONS.iter().find(|option| option.name == name), kind) {
        (Some(option), MountKind::InGuest) => option.in_guest,
        (Some(option), MountKind::HostBind) => option.host_bind,
        (None, MountKind::InGuest) => Applied,
        (None, MountKind::HostBind) => OF_FILE_SYSTEM,
    }
}

/// Filters the options of the mount at `path` and checks its type.
pub(super) fn filter_mount(mount: &mut Value, path: &str, findings: &mut Findings) {
    let mut kind = MountKind::InGuest;
    let file_system = mount["type"].as_str().unwrap_or_default();
    let is_tmpfs = file_system == "tmpfs";
    let options = mount["options"].as_array();
    let is_bind = |option: &Value| option == "bind" || option == "rbind";
    if file_system == "bind" || options.into_iter().flatten().any(is_bind) {
        kind = MountKind::HostBind;
    } else if !FILE_SYSTEMS.contains(&file_system) {
        let reason = format!("the guest cannot mount a file system {}", quoted(file_system));
        findings.refuse(join(path, "type"), reason);
    }
    let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) else {
        return;
    };
    let mut index = 0;
    options.retain(|name| {
        let path = format!("{path}.options[{index}]");
        index += 1;
        let name = name.as_str().unwrap_or_default();
        let handling = if name == COPY_UP && !is_tmpfs {
            ONLY_TMPFS
        } else {
            option(name, kind)
        };
        match handling {
            OptionHandling::Applied => true,
            OptionHandling::Ignored(reason) => {
                findings.ignore(path, format!("{}: {reason}", quoted(name)));
                false
            }
            OptionHandling::Refused(reason) => {
                findings.refuse(path, format!("{}: {reason}", quoted(name)));
                false
            }
        }
    });
}
