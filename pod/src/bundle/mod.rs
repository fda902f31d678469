//! Turns a bundle's config.json into a plan: the mounts and hooks for the host, and the spec that the guest
//! gets. Called by the sandbox's create flow. Pure: opens no file, so that a spec that can't be honoured is
//! refused before anything is created.

mod disk_rootfs;
mod disks;
mod id_maps;
mod namespaces;
mod pod_shm;
mod users;

use std::path::{Component, Path, PathBuf};

use nacre_protocol::guest;
use nacre_protocol::spec::{CheckedSpec, Finding, Findings, MAX_SPEC, Refused};
use serde_json::{Value, json};

use crate::annotations::{self, Role};
use crate::hooks::Hooks;
use crate::mirror;
use crate::mount::{Disk, Extent, HostMount, Mount, Rootfs};
use crate::pod_files;
use crate::pod_spec::{Lifetime, oom_score_adj};
use crate::size::Limits;
pub use disk_rootfs::{has_images, upper_directory};
pub use namespaces::{Pids, Pod};

/// Where the host's kernel shows files that it makes when they are read.
const KERNEL_FILES: [&str; 2] = ["/proc", "/sys"];

/// What is to be done on the host and in the guest for a container.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// The spec for the guest: it names no path, namespace or cgroup of the host.
    pub guest_spec: Value,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Block devices of the host that the container uses.
    pub disks: Vec<Disk>,
    /// Files and directories of the host that the container sees.
    pub mounts: Vec<HostMount>,
    /// The host's tmpfs whose place the guest's /dev/shm takes, if the container has the pod's.
    pub pod_shm: Option<PathBuf>,
    /// Fields of the spec that have no effect, and why.
    pub ignored: Vec<Finding>,
    /// Whose processes the container sees.
    pub pids: Pids,
    /// Hooks that run on the host.
    pub hooks: Hooks,
    /// The container is the pod's pause container: it has no process in the guest.
    pub is_pause: bool,
    /// The limits that the VM's size follows from.
    pub limits: Limits,
    /// The spec's process.terminal.
    pub terminal: bool,
    /// What the spec's process.oomScoreAdj asks for the VMM; see [`oom_score_adj`].
    pub oom_score_adj: Option<i32>,
}

impl Plan {
    /// Whether the container uses disks of the host.
    #[must_use]
    pub fn has_disks(&self) -> bool {
        matches!(self.rootfs, Rootfs::Disk(_) | Rootfs::Overlay(_)) || !self.disks.is_empty()
    }

    /// Has the container see mount `index` of the spec by the shared mount `number`, which it makes itself, or which
    /// another container makes.
    pub fn use_volume(&mut self, index: usize, number: u32, is_maker: bool) {
        let Some(at) = self.mounts.iter().position(|mount| mount.index == index) else {
            return;
        };
        let mut mount = self.mounts.remove(at);
        mount.volume = Some(number);
        self.guest_spec["mounts"][index]["source"] = json!(guest::shared_path(&mount.mount_point("")));
        if is_maker {
            self.mounts.insert(at, mount);
        }
    }

    /// Has the container see mirror `number` in place of mount `index` of the spec.
    pub fn use_mirror(&mut self, index: usize, number: u32) {
        self.mounts.retain(|mount| mount.index != index);
        self.guest_spec["mounts"][index]["source"] = json!(guest::mirror_path(number));
    }
}

/// Plans container `id` with the spec `spec` of `bundle`, for the VM of `pod`. Its root file system is
/// `rootfs`, or the spec's root.path if `rootfs` is empty.
///
/// # Errors
/// [`Refused`] with every field that this host can't honour.
pub fn plan(
    id: &str,
    bundle: &Path,
    spec: CheckedSpec,
    rootfs: Vec<Mount>,
    pod: Pod<'_>,
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
    annotations::check(&spec["annotations"], &mut findings);
    check_role(id, &spec["annotations"], pod, &mut findings);
    namespaces::check(id, &mut spec["linux"]["namespaces"], pod, &mut findings);
    users::check(id, &mut spec["linux"], pod, &mut findings);
    pod_files::add_mounts(&mut spec, &pod.spec.files, normalized);
    let pod_shm = pod_shm::replace_all(&mut spec, pod);
    let mut mounts = host_mounts(bundle, &spec, &mut findings);
    mounts.retain(|mount| !pod_shm.contains_key(&mount.index));
    let disks = disks::devices(&spec, &mut findings);
    check_proc(&spec["mounts"], &mut findings);
    check_cpus(id, &spec, pod, &mut findings);
    let oom_score_adj = oom_score_adj(&spec);
    let root_path = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
    if rootfs.is_empty() && root_path.is_empty() {
        findings.refuse("root.path", "missing, and Create has no rootfs mounts");
    }
    let ignored = findings.into_ignored()?;
    let rootfs = if rootfs.is_empty() {
        Rootfs::Directory(bundle.join(root_path))
    } else {
        disk_rootfs::rootfs(rootfs, pod.writable_layer)
    };
    let terminal = spec["process"]["terminal"].as_bool().unwrap_or(false);
    let limits = Limits::of(&spec["linux"]["resources"]);
    let pids = Pids::of(&spec["linux"]["namespaces"]);
    rewrite_for_guest(&mut spec, id, &rootfs, &mounts);
    let length = spec.to_string().len();
    if length > MAX_SPEC {
        // The guest's paths can be longer than the host's.
        let reason = format!("expected at most {MAX_SPEC} bytes for the guest, got {length}");
        return Err(Refused::new("config.json", reason));
    }
    Ok(Plan {
        guest_spec: spec,
        rootfs,
        disks,
        mounts,
        pod_shm: pod_shm.into_values().next(),
        ignored,
        hooks,
        pids,
        is_pause: id == pod.sandbox && pod.spec.lifetime == Lifetime::PauseContainer,
        limits,
        terminal,
        oom_score_adj,
    })
}

/// A pod has one sandbox: the container that its VM was started for.
fn check_role(id: &str, annotations: &Value, pod: Pod<'_>, findings: &mut Findings) {
    if id != pod.sandbox && annotations::role(annotations) == Ok(Role::Sandbox) {
        let reason = format!("a second sandbox in the pod of {:?}", pod.sandbox);
        findings.refuse("annotations", reason);
    }
}

/// A VM's CPUs are those of the spec it was started for, so a later container of the pod can't choose others.
fn check_cpus(id: &str, spec: &Value, pod: Pod<'_>, findings: &mut Findings) {
    let cpus = spec["linux"]["resources"]["cpu"]["cpus"].as_str();
    if cpus.is_some_and(|cpus| !cpus.is_empty()) && pod.sandbox != id {
        findings.ignore(
            "linux.resources.cpu.cpus",
            "the CPUs of the pod's VM are those of the pod's first container",
        );
    }
}

/// The code that creates a container in the guest trusts its /proc, so nothing but procfs may be mounted
/// there.
fn check_proc(mounts: &Value, findings: &mut Findings) {
    for (index, mount) in mounts.as_array().into_iter().flatten().enumerate() {
        let destination = Path::new(mount["destination"].as_str().unwrap_or_default());
        if normalized(destination) == Path::new("/proc") && mount["type"] != "proc" {
            let path = format!("mounts[{index}].destination");
            findings.refuse(path, "only a proc file system can be mounted at /proc");
        }
    }
}

/// Whether the container has a namespace of its own of this type; if not, it has the guest's, which is the
/// pod's.
fn has_namespace(spec: &Value, kind: &str) -> bool {
    let mut listed = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    listed.any(|namespace| namespace["type"] == kind)
}

/// `path` as an absolute path without `.` and `..`, by its text alone.
fn normalized(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

/// The bind mounts of `spec`: their sources are on the host. The guest makes all other mounts.
fn host_mounts(bundle: &Path, spec: &Value, findings: &mut Findings) -> Vec<HostMount> {
    let mut found = Vec::new();
    let has_users = has_namespace(spec, "user");
    for (index, mount) in spec["mounts"].as_array().into_iter().flatten().enumerate() {
        let has = |wanted: &str| {
            mount["options"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|option| option == wanted)
        };
        let is_bind = mount["type"] == "bind" || has("bind") || has("rbind");
        let id_map = id_maps::of_mount(spec, index, is_bind, findings);
        if !is_bind {
            continue;
        }
        let Some(source) = mount["source"].as_str().filter(|source| !source.is_empty()) else {
            findings.refuse(
                format!("mounts[{index}].source"),
                "missing: a bind mount needs a source",
            );
            continue;
        };
        let source = bundle.join(source);
        let read_only = has("ro") || has("rro");
        // A write to a copy would not reach the host, and the files of a copy have the ids of the host.
        let may_be_mirrored = read_only && id_map.is_none() && !has_users && mirror::is_volume(&source);
        let whole = normalized(&source);
        found.push(HostMount {
            index,
            is_of_kernel: KERNEL_FILES.iter().any(|kernel| whole.starts_with(kernel)),
            source,
            extent: Extent {
                recursive: !has("bind"),
                read_only,
            },
            id_map,
            may_be_mirrored,
            volume: None,
        });
    }
    found
}

/// Rewrites paths of the host to the guest's, and removes what the host does itself: its hooks and the VM's
/// CPUs.
fn rewrite_for_guest(spec: &mut Value, id: &str, rootfs: &Rootfs, mounts: &[HostMount]) {
    spec["root"]["path"] = json!(match rootfs {
        Rootfs::Disk(_) | Rootfs::Overlay(_) => guest::disk_rootfs_path(id),
        Rootfs::Directory(_) | Rootfs::Mounts(_) => guest::rootfs_path(id),
    });
    for mount in mounts {
        spec["mounts"][mount.index]["source"] = json!(guest::shared_path(&mount.mount_point(id)));
        spec["mounts"][mount.index]["type"] = json!("bind");
    }
    let all_mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    all_mounts.into_iter().flatten().for_each(id_maps::remove);
    spec["linux"]["cgroupsPath"] = json!(guest::cgroup_path(id));
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
