//! The namespaces of a container's init: opened by the agent, entered or made by its child. Knows the order
//! that the kernel requires: a user namespace first, because it owns those that are made in it.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType as Kind, LinuxTimeOffset, Spec};
use rustix::process::Pid;
use rustix::thread::{
    Gid, Uid, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::child::{Failure, at};
use crate::error::Error;

/// Where the offsets of a time namespace are written before a process enters it.
const TIME_OFFSETS: &str = "/proc/self/timens_offsets";

/// The namespaces to enter and to make.
pub struct Namespaces {
    joined: Vec<(Kind, OwnedFd)>,
    made: Vec<Kind>,
}

impl Namespaces {
    /// Those of `spec`, whose paths are in the guest.
    ///
    /// # Errors
    /// With the path that can't be opened, such as that of a process that has exited.
    pub fn open(spec: &Spec) -> Result<Self, Error> {
        let linux = spec.linux().as_ref();
        let listed = linux.and_then(|linux| linux.namespaces().as_ref());
        let mut all = Self {
            joined: Vec::new(),
            made: Vec::new(),
        };
        for namespace in listed.into_iter().flatten() {
            match namespace.path() {
                Some(path) => {
                    let file = File::open(path).map_err(Error::file("opening", path))?;
                    all.joined.push((namespace.typ(), file.into()));
                }
                None => all.made.push(namespace.typ()),
            }
        }
        Ok(all)
    }

    /// Whether a namespace of this kind is made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.made.contains(&kind)
    }

    /// True if a forerunner must fork the init: the kernel puts only children into a joined pid or time namespace,
    /// and a user namespace must exist before those that it owns.
    pub fn need_forerunner(&self) -> bool {
        let before = [Kind::User, Kind::Time];
        let is_before = |kind: &Kind| before.contains(kind);
        self.made.iter().any(is_before)
            || self
                .joined
                .iter()
                .any(|(kind, _)| is_before(kind) || *kind == Kind::Pid)
    }

    /// The open descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.joined.iter().map(|(_, namespace)| namespace.as_raw_fd())
    }

    /// The types of namespaces that the init is forked into.
    pub fn of_fork(&self) -> CloneFlags {
        let flag = |kind, flag| {
            if self.makes(kind) {
                flag
            } else {
                CloneFlags::empty()
            }
        };
        flag(Kind::User, CloneFlags::CLONE_NEWUSER) | flag(Kind::Pid, CloneFlags::CLONE_NEWPID)
    }

    /// Enters or makes what the children of the caller are to be in: the forerunner's work. `spec` has the
    /// offsets of a new time namespace.
    pub fn enter_for_children(&self, spec: &Spec) -> Result<(), Failure> {
        if self.makes(Kind::Time) {
            let new_time = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
            unshare(new_time).map_err(at("making a time namespace"))?;
            write_time_offsets(spec)?;
        }
        // The user namespace before those that it owns.
        for kind in [Kind::Time, Kind::User, Kind::Pid] {
            self.join(kind)?;
        }
        Ok(())
    }

    /// Enters and makes the others.
    pub fn enter_others(&self) -> Result<(), Failure> {
        for kind in [Kind::Cgroup, Kind::Ipc, Kind::Uts, Kind::Network, Kind::Mount] {
            self.join(kind)?;
        }
        let flag = |kind: &Kind| match kind {
            Kind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            Kind::Ipc => CloneFlags::CLONE_NEWIPC,
            Kind::Uts => CloneFlags::CLONE_NEWUTS,
            Kind::Network => CloneFlags::CLONE_NEWNET,
            Kind::Mount => CloneFlags::CLONE_NEWNS,
            Kind::User | Kind::Pid | Kind::Time => CloneFlags::empty(),
        };
        let made = self
            .made
            .iter()
            .map(flag)
            .fold(CloneFlags::empty(), |all, flag| all | flag);
        unshare(made).map_err(at("making namespaces"))
    }

    fn join(&self, kind: Kind) -> Result<(), Failure> {
        let Some((_, namespace)) = self.joined.iter().find(|(joined, _)| *joined == kind) else {
            return Ok(());
        };
        move_into_link_name_space(namespace.as_fd(), None)
            .map_err(|error| Failure::Step(format!("entering a namespace of type {kind}: {error}")))
    }
}

/// Makes the caller root of its user namespace.
pub fn become_root() -> Result<(), Failure> {
    let step = "becoming root of the user namespace";
    set_thread_groups(&[]).map_err(at(step))?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(at(step))?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(at(step))
}

fn write_time_offsets(spec: &Spec) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let offsets = linux.and_then(|linux| linux.time_offsets().as_ref());
    let line = |(clock, offset): (&String, &LinuxTimeOffset)| {
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        format!("{clock} {seconds} {nanoseconds}\n")
    };
    let text: String = offsets.into_iter().flatten().map(line).collect();
    if text.is_empty() {
        return Ok(());
    }
    fs::write(TIME_OFFSETS, text).map_err(at("linux.timeOffsets"))
}

/// Writes the id maps of the new user namespace that process `pid` is in.
///
/// # Errors
/// The kernel's reason with the map that it refuses.
pub fn write_id_maps(spec: &Spec, pid: Pid) -> Result<(), Error> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (name, mappings) in [
        ("uid_map", linux.uid_mappings()),
        ("gid_map", linux.gid_mappings()),
    ] {
        let lines = id_map(mappings.as_deref().unwrap_or_default());
        if !lines.is_empty() {
            let file = format!("/proc/{}/{name}", pid.as_raw_nonzero());
            fs::write(file, &lines).map_err(Error::system(format!("setting {name} to {lines:?}")))?;
        }
    }
    Ok(())
}

/// `mappings` as user_namespaces(7) takes them.
fn id_map(mappings: &[LinuxIdMapping]) -> String {
    let line = |mapping: &LinuxIdMapping| {
        let (inside, outside) = (mapping.container_id(), mapping.host_id());
        format!("{inside} {outside} {}\n", mapping.size())
    };
    mappings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespaces(list: serde_json::Value) -> Namespaces {
        let spec = json!({"ociVersion": "1.0", "linux": {"namespaces": list}});
        Namespaces::open(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    #[test]
    fn only_what_children_inherit_needs_a_forerunner() {
        for (list, want) in [
            (
                json!([{"type": "pid"}, {"type": "mount"}, {"type": "network"}]),
                false,
            ),
            (json!([{"type": "ipc", "path": "/proc/self/ns/ipc"}]), false),
            (json!([{"type": "pid", "path": "/proc/self/ns/pid"}]), true),
            (json!([{"type": "user"}]), true),
            (json!([{"type": "user", "path": "/proc/self/ns/user"}]), true),
            (json!([{"type": "time"}]), true),
        ] {
            assert_eq!(namespaces(list.clone()).need_forerunner(), want, "{list}");
        }
        let all = namespaces(json!([{"type": "user"}, {"type": "pid"}, {"type": "uts"}]));
        assert_eq!(
            all.of_fork(),
            CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID
        );
    }

    #[test]
    fn each_range_is_a_line() {
        let mappings = json!([{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 5000, "size": 10}]);
        let mappings: Vec<LinuxIdMapping> = serde_json::from_value(mappings).unwrap();
        assert_eq!(id_map(&mappings), "0 1000 1\n1 5000 10\n");
    }
}
