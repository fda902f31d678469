//! From a bundle to a plan: what the host does (mounts) and what the guest is told (its spec). Pure: reads no file but
//! the bytes it is given, opens nothing, so that a spec that can't be honoured is refused before anything is made.

mod namespaces;

use std::path::{Component, Path, PathBuf};

use nacre_protocol::spec::{CheckedSpec, Finding, Findings, MAX_SPEC, Refused};
use nacre_protocol::{cpu_list, guest};
use serde_json::{Value, json};

use crate::hooks::Hooks;
use crate::mount::{Extent, HostMount, Mount, Rootfs};
pub use namespaces::Pod;

/// What is to be done for a container.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// The spec for the guest, JSON.
    pub guest_spec: Vec<u8>,
    /// The root file system.
    pub rootfs: Rootfs,
    /// The host's files that it sees.
    pub mounts: Vec<HostMount>,
    /// Fields of the spec that have no effect, and why.
    pub ignored: Vec<Finding>,
    /// What runs on the host around it.
    pub hooks: Hooks,
    /// Whether the process is to have a terminal.
    pub terminal: bool,
}

/// What a VM must know of its first spec before Create comes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct VmHints {
    /// The spec's cgroupsPath.
    pub cgroups_path: Option<String>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Microseconds a period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// The host's CPUs that it may run on; empty: all.
    pub cpus: Vec<usize>,
    /// The container's host name.
    pub hostname: Option<String>,
    /// Whether the spec says that other containers will join.
    pub is_pod: bool,
}

/// Reads what a VM is sized by; a spec that does not parse gives nothing, Create will say why.
pub fn vm_hints(config_json: &[u8]) -> VmHints {
    let spec: Value = serde_json::from_slice(config_json).unwrap_or_default();
    let linux = &spec["linux"];
    let (memory, cpu) = (&linux["resources"]["memory"], &linux["resources"]["cpu"]);
    VmHints {
        cgroups_path: linux["cgroupsPath"].as_str().map(str::to_owned),
        memory_limit: memory["limit"].as_i64(),
        cpu_quota: cpu["quota"].as_i64(),
        cpu_period: cpu["period"].as_u64(),
        cpus: cpu["cpus"].as_str().and_then(cpu_list::parse).unwrap_or_default(),
        hostname: spec["hostname"].as_str().map(str::to_owned),
        is_pod: spec["annotations"]["io.kubernetes.cri.container-type"].is_string(),
    }
}

/// Plans container `id` with the spec `spec` of `bundle`, for the VM of `pod`. Its root file system is `rootfs`, or the
/// spec's root.path if `rootfs` is empty.
///
/// # Errors
/// [`Refused`] with every field that this host can't honour.
pub fn plan(
    id: &str,
    bundle: &Path,
    spec: CheckedSpec,
    rootfs: Vec<Mount>,
    pod: Option<Pod<'_>>,
) -> Result<Plan, Refused> {
    let (mut spec, ignored) = spec.into_parts();
    let mut findings = Findings {
        ignored,
        ..Findings::default()
    };
    let hooks = Hooks::parse(id, bundle, &spec).unwrap_or_else(|invalid| {
        findings.refuse(invalid.path, invalid.reason);
        Hooks::default()
    });
    namespaces::check(&mut spec["linux"]["namespaces"], pod, &mut findings);
    let mounts = host_mounts(bundle, &spec["mounts"], &mut findings);
    check_proc(&spec["mounts"], &mut findings);
    check_cpus(id, &spec, pod, &mut findings);
    let root_path = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
    if rootfs.is_empty() && root_path.is_empty() {
        findings.refuse("root.path", "missing, and no mounts are given for it");
    }
    let ignored = findings.into_ignored()?;
    let rootfs = if rootfs.is_empty() {
        Rootfs::Directory(bundle.join(root_path))
    } else {
        Rootfs::Mounts(rootfs)
    };
    let terminal = spec["process"]["terminal"].as_bool().unwrap_or(false);
    for_guest(&mut spec, id, &mounts);
    let guest_spec = spec.to_string().into_bytes();
    if guest_spec.len() > MAX_SPEC {
        // The guest's paths can be longer than the host's.
        let reason = format!(
            "expected at most {MAX_SPEC} bytes for the guest, got {}",
            guest_spec.len()
        );
        return Err(Refused::new("config.json", reason));
    }
    Ok(Plan {
        guest_spec,
        rootfs,
        mounts,
        ignored,
        hooks,
        terminal,
    })
}

/// A VM's CPUs are those of the spec it was started for, so a later container of the pod can't choose others.
fn check_cpus(id: &str, spec: &Value, pod: Option<Pod<'_>>, findings: &mut Findings) {
    let cpus = spec["linux"]["resources"]["cpu"]["cpus"].as_str();
    if cpus.is_some_and(|cpus| !cpus.is_empty()) && pod.is_some_and(|pod| pod.sandbox != id) {
        findings.ignore(
            "linux.resources.cpu.cpus",
            "the CPUs of the pod's VM are those of the pod's first container",
        );
    }
}

/// What makes a container looks things up in its /proc, so nothing else may be in its place.
fn check_proc(mounts: &Value, findings: &mut Findings) {
    for (index, mount) in mounts.as_array().into_iter().flatten().enumerate() {
        let destination = Path::new(mount["destination"].as_str().unwrap_or_default());
        let mut place = PathBuf::from("/");
        for component in destination.components() {
            match component {
                Component::Normal(part) => place.push(part),
                Component::ParentDir => {
                    place.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if place == Path::new("/proc") && mount["type"] != "proc" {
            let path = format!("mounts[{index}].destination");
            findings.refuse(path, "nothing but a proc file system can be at /proc");
        }
    }
}

/// Binds come from the host; other file systems are made in the guest.
fn host_mounts(bundle: &Path, mounts: &Value, findings: &mut Findings) -> Vec<HostMount> {
    let mut found = Vec::new();
    for (index, mount) in mounts.as_array().into_iter().flatten().enumerate() {
        let has = |word: &str| {
            mount["options"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|option| option == word)
        };
        if mount["type"] != "bind" && !has("bind") && !has("rbind") {
            continue;
        }
        let Some(source) = mount["source"].as_str().filter(|source| !source.is_empty()) else {
            findings.refuse(format!("mounts[{index}].source"), "a bind without a source");
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
    }
    found
}

/// Rewrites what names the host: paths become the guest's; what was done on the host is taken out.
fn for_guest(spec: &mut Value, id: &str, mounts: &[HostMount]) {
    spec["root"]["path"] = json!(guest::rootfs_path(id));
    for mount in mounts {
        spec["mounts"][mount.index]["source"] = json!(guest::mount_path(id, mount.index));
        spec["mounts"][mount.index]["type"] = json!("bind");
    }
    spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    if let Some(hooks) = spec.get_mut("hooks").and_then(Value::as_object_mut) {
        hooks.retain(|point, _| !Hooks::KEYS.contains(&point.as_str()));
    }
    if let Some(cpu) = spec
        .pointer_mut("/linux/resources/cpu")
        .and_then(Value::as_object_mut)
    {
        cpu.remove("cpus");
    }
}

#[cfg(test)]
mod tests;
