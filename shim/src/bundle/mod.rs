//! From a bundle to a plan: what the host does (mounts) and what the guest is told (its spec). Pure: reads no file but
//! the bytes it is given, opens nothing, so that a spec that can't be honoured is refused before anything is made.

mod fields;

use std::path::{Path, PathBuf};

use nacre_protocol::guest;
use serde_json::{Value, json};

use crate::rootfs::{Extent, Mount};
pub use fields::Refusal;

/// Why a bundle can't be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
}

fn list(refusals: &[Refusal]) -> String {
    let parts: Vec<String> = refusals
        .iter()
        .map(|refusal| format!("{}: {}", refusal.path, refusal.reason))
        .collect();
    parts.join("; ")
}

/// A container's root file system on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory, as it is.
    Directory(PathBuf),
    /// What containerd's snapshotter says is to be mounted.
    Mounts(Vec<Mount>),
}

/// A file or directory of the host that the container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// Its place among the spec's mounts.
    pub index: usize,
    /// Where it is on the host.
    pub source: PathBuf,
    /// How much of it, and whether it may be written whatever the guest does.
    pub extent: Extent,
}

/// What is to be done for a container.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The spec for the guest, JSON.
    pub guest_spec: Vec<u8>,
    /// The root file system.
    pub rootfs: Rootfs,
    /// The host's files that it sees.
    pub mounts: Vec<HostMount>,
    /// Keys of the spec that nobody knows, by path.
    pub unknown: Vec<String>,
}

/// What a VM must know of its first spec before Create comes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The spec's cgroupsPath.
    pub cgroups_path: Option<String>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Microseconds a period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// The container's host name.
    pub hostname: Option<String>,
    /// Whether the spec says that other containers will join.
    pub is_pod: bool,
}

/// Reads what a VM is sized by; a spec that does not parse gives nothing, Create will say why.
pub fn outline(config_json: &[u8]) -> Outline {
    let spec: Value = serde_json::from_slice(config_json).unwrap_or_default();
    let linux = &spec["linux"];
    let (memory, cpu) = (&linux["resources"]["memory"], &linux["resources"]["cpu"]);
    Outline {
        cgroups_path: linux["cgroupsPath"].as_str().map(str::to_owned),
        memory_limit: memory["limit"].as_i64(),
        cpu_quota: cpu["quota"].as_i64(),
        cpu_period: cpu["period"].as_u64(),
        hostname: spec["hostname"].as_str().map(str::to_owned),
        is_pod: spec["annotations"]["io.kubernetes.cri.container-type"].is_string(),
    }
}

/// Plans container `id` of the spec `config_json` in `bundle`, whose root file system is `rootfs` (none where the spec's
/// own root.path is it).
///
/// # Errors
/// [`Error`] with every field that can't be honoured.
pub fn plan(id: &str, bundle: &Path, config_json: &[u8], rootfs: Vec<Mount>) -> Result<Plan, Error> {
    let mut spec: Value = serde_json::from_slice(config_json)?;
    let mut findings = fields::check(&spec);
    check_namespaces(&spec["linux"]["namespaces"], &mut findings.refusals);
    let mounts = host_mounts(bundle, &spec["mounts"], &mut findings.refusals);
    let root_path = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
    if rootfs.is_empty() && root_path.is_empty() {
        let reason = "missing, and no mounts are given for it".to_owned();
        findings.refusals.push(Refusal {
            path: "root.path".into(),
            reason,
        });
    }
    if !findings.refusals.is_empty() {
        return Err(Error::Refused(findings.refusals));
    }
    let rootfs = if rootfs.is_empty() {
        Rootfs::Directory(bundle.join(root_path))
    } else {
        Rootfs::Mounts(rootfs)
    };
    for_guest(&mut spec, id, &mounts);
    Ok(Plan {
        guest_spec: serde_json::to_vec(&spec)?,
        rootfs,
        mounts,
        unknown: findings.unknown,
    })
}

/// A guest has its own of each kind; sharing the host's is what it can't.
fn check_namespaces(namespaces: &Value, refusals: &mut Vec<Refusal>) {
    const WANTED: [&str; 5] = ["mount", "pid", "network", "ipc", "uts"];
    const ALSO: [&str; 1] = ["cgroup"];
    let kinds: Vec<&str> = namespaces
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["type"].as_str())
        .collect();
    for (index, kind) in kinds.iter().enumerate() {
        if !WANTED.contains(kind) && !ALSO.contains(kind) {
            let path = format!("linux.namespaces[{index}].type");
            refusals.push(Refusal {
                path,
                reason: format!("{kind:?} namespaces are not supported yet"),
            });
        }
    }
    for missing in WANTED.iter().filter(|kind| !kinds.contains(kind)) {
        let reason =
            format!("there is no {missing:?}: the host's {missing} namespace can't be shared with a guest");
        refusals.push(Refusal {
            path: "linux.namespaces".into(),
            reason,
        });
    }
}

/// Options of a mount that nobody would apply: id mappings, copies, propagation to or from the host.
const NOT_DONE: [&str; 13] = [
    "idmap",
    "ridmap",
    "tmpcopyup",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "sync",
    "dirsync",
    "mand",
    "remount",
];

/// Binds come from the host; other file systems are made in the guest.
fn host_mounts(bundle: &Path, mounts: &Value, refusals: &mut Vec<Refusal>) -> Vec<HostMount> {
    const IN_GUEST: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
    let mut found = Vec::new();
    for (index, mount) in mounts.as_array().into_iter().flatten().enumerate() {
        let options: Vec<&str> = mount["options"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let has = |word: &str| options.contains(&word);
        let kind = mount["type"].as_str().unwrap_or_default();
        if let Some(word) = options.iter().find(|word| NOT_DONE.contains(word)) {
            let reason = format!("{word:?} is not supported yet");
            refusals.push(Refusal {
                path: format!("mounts[{index}].options"),
                reason,
            });
        }
        if kind == "bind" || has("bind") || has("rbind") {
            let Some(source) = mount["source"].as_str().filter(|source| !source.is_empty()) else {
                let reason = "a bind without a source".to_owned();
                refusals.push(Refusal {
                    path: format!("mounts[{index}].source"),
                    reason,
                });
                continue;
            };
            found.push(HostMount {
                index,
                source: bundle.join(source),
                extent: Extent {
                    recursive: !has("bind"),
                    read_only: has("ro") || has("rro"),
                },
            });
        } else if !IN_GUEST.contains(&kind) {
            let reason = format!("file system {kind:?} is not supported yet");
            refusals.push(Refusal {
                path: format!("mounts[{index}].type"),
                reason,
            });
        }
    }
    found
}

/// Rewrites what names the host: paths become the guest's; the VM is the network namespace already.
fn for_guest(spec: &mut Value, id: &str, mounts: &[HostMount]) {
    spec["root"]["path"] = json!(guest::rootfs_path(id));
    for mount in mounts {
        spec["mounts"][mount.index]["source"] = json!(guest::mount_path(id, mount.index));
        spec["mounts"][mount.index]["type"] = json!("bind");
    }
    spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
}

#[cfg(test)]
mod tests;
