//! Sysctls of the pod: those of its network, IPC and UTS namespaces, which are the guest's initial ones.
//! Setup sets those of a pause container, which has no process, and CreateContainer those of a container that
//! shares the namespace. A container's init sets those of the namespaces of its own. Never sets one that all
//! of the guest would get: as under runc, it is refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};

use crate::error::Error;
use crate::spec::has_namespace;

const ROOT: &str = "/proc/sys";
/// What belongs to a namespace: whole names, and prefixes that end with a slash.
const OF_NAMESPACES: [(&str, Kind); 11] = [
    ("net/", Kind::Network),
    ("fs/mqueue/", Kind::Ipc),
    ("kernel/msgmax", Kind::Ipc),
    ("kernel/msgmnb", Kind::Ipc),
    ("kernel/msgmni", Kind::Ipc),
    ("kernel/sem", Kind::Ipc),
    ("kernel/shmall", Kind::Ipc),
    ("kernel/shmmax", Kind::Ipc),
    ("kernel/shmmni", Kind::Ipc),
    ("kernel/shm_rmid_forced", Kind::Ipc),
    ("kernel/domainname", Kind::Uts),
];

/// Sets `sysctls` in the calling process's namespaces.
///
/// # Errors
/// With the name of the one that is refused, or that the kernel does not take. The others may be set.
pub fn set_sysctls(sysctls: &HashMap<String, String>) -> Result<(), Error> {
    let mut files = Vec::new();
    for (name, value) in sysctls {
        let (file, _) = file(name)?;
        files.push((name, Path::new(ROOT).join(file), value));
    }
    // In a fixed order: a map has none, and one may depend on another.
    files.sort();
    for (name, file, value) in files {
        std::fs::write(&file, value).map_err(Error::system(format!("setting sysctl {name} to {value:?}")))?;
    }
    Ok(())
}

/// Sets the sysctls of `spec` in the calling process's namespaces, which are those of its container.
///
/// # Errors
/// As [`set_sysctls`]. Those of a user namespace are refused without one.
pub fn set_own_sysctls(spec: &Spec) -> Result<(), Error> {
    let sysctls = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let (of_users, others): (HashMap<_, _>, HashMap<_, _>) = sysctls
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .partition(|(name, _)| has_namespace(spec, Kind::User) && is_of_users(name));
    for (name, value) in of_users {
        let file = Path::new(ROOT).join(path_of(&name)?);
        std::fs::write(&file, &value)
            .map_err(Error::system(format!("setting sysctl {name} to {value:?}")))?;
    }
    set_sysctls(&others)
}

fn is_of_users(name: &str) -> bool {
    path_of(name).is_ok_and(|path| path.starts_with("user/"))
}

/// Removes from `spec` the sysctls of namespaces that it shares with the pod, and returns them.
pub fn take_shared(spec: &mut Spec) -> HashMap<String, String> {
    let is_shared = |name: &str| file(name).is_ok_and(|(_, kind)| !has_namespace(spec, kind));
    let sysctls = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone());
    let (shared, own): (HashMap<_, _>, HashMap<_, _>) = sysctls
        .unwrap_or_default()
        .into_iter()
        .partition(|(name, _)| is_shared(name));
    if !shared.is_empty()
        && let Some(linux) = spec.linux_mut()
    {
        linux.set_sysctl(Some(own));
    }
    shared
}

/// The file of sysctl `name` below /proc/sys, and the type of its namespace.
fn file(name: &str) -> Result<(PathBuf, Kind), Error> {
    let path = path_of(name)?;
    let is_it = |known: &str| path == known || (known.ends_with('/') && path.starts_with(known));
    match OF_NAMESPACES.iter().find(|(known, _)| is_it(known)) {
        Some((_, kind)) => Ok((path.into(), *kind)),
        None => Err(refused(name, "belongs to no namespace of the pod")),
    }
}

fn refused(name: &str, reason: &str) -> Error {
    Error::bad_spec("linux.sysctl", format!("{name:?}: {reason}"))
}

/// The path of sysctl `name` below /proc/sys. The separators are dots or slashes; if the first one is a
/// slash, a dot is part of a name, such as that of a VLAN's link.
fn path_of(name: &str) -> Result<String, Error> {
    let is_path = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('/'));
    let path: String = if is_path {
        name.to_owned()
    } else {
        let swapped = |letter| match letter {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        name.chars().map(swapped).collect()
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
        return Err(refused(name, "is not the name of a sysctl"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_files() {
        for (name, want) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/100.rp_filter",
                "net/ipv4/conf/eth0.100/rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.100/rp_filter",
                "net/ipv4/conf/eth0.100/rp_filter",
            ),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ] {
            assert_eq!(file(name).unwrap().0, Path::new(want), "{name}");
        }
    }

    #[test]
    fn what_belongs_to_no_namespace_is_refused_by_name() {
        for name in [
            "vm.swappiness",
            "kernel.pid_max",
            "kernel.hostname",
            "kernel.sem.x",
            "net",
            "net..x",
            "net.ipv4./..",
            "net/../vm/swappiness",
            "",
        ] {
            let error = file(name).unwrap_err().to_string();
            assert!(
                error.contains("linux.sysctl") && error.contains(&format!("{name:?}")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_container_s_sysctls_are_the_pod_s_if_it_shares_the_namespace() {
        let mut spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0", "linux": {
            "namespaces": [{"type": "ipc"}],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4", "vm.swappiness": "1"}}}))
        .unwrap();
        let shared = take_shared(&mut spec);
        assert_eq!(
            shared,
            [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into()
        );
        let left = spec.linux().as_ref().unwrap().sysctl().clone().unwrap();
        let mut left: Vec<_> = left.into_keys().collect();
        left.sort();
        assert_eq!(left, ["kernel.sem", "vm.swappiness"]);
        assert!(take_shared(&mut spec).is_empty());
    }

    #[test]
    fn all_names_are_checked_before_one_is_set() {
        let sysctls = [("net.none.such", "1"), ("vm.swappiness", "1")];
        let sysctls = sysctls
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let error = set_sysctls(&sysctls).unwrap_err().to_string();
        assert!(error.contains("vm.swappiness"), "{error}");
        let sysctls = [("net.none.such".to_owned(), "1".to_owned())].into();
        let error = set_sysctls(&sysctls).unwrap_err().to_string();
        assert!(
            error.contains("net.none.such") && error.contains("No such file"),
            "{error}"
        );
    }
}
