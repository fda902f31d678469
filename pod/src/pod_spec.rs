//! What a pod's VM is started for, known before Create: the [`PodSpec`]. It is read from the OCI spec of the
//! pod's first container; a door that has no such spec makes one of its own. The sandbox keeps it; the VM's
//! start, its size, cgroup and network depend on it. Refuses nothing: Create does, with the
//! field's name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::cpu_list;
use serde_json::Value;

use crate::annotations::{self, Role};
use crate::mount::IdMap;
use crate::pod_files::PodFile;
use crate::size::SizeHints;

/// What a pod's VM is started for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// linux.cgroupsPath, in either notation.
    pub cgroups_path: Option<String>,
    /// What the pod's size follows from.
    pub size: SizeHints,
    /// The host's CPUs that the VM may run on, all of them if this is empty.
    pub cpus: Vec<usize>,
    /// The pod's own host name; see [`PodSpec::guest_hostname`].
    pub hostname: Option<String>,
    /// The process.oomScoreAdj for the VMM; see [`oom_score_adj`].
    pub oom_score_adj: Option<i32>,
    /// The host's network namespace whose links the pod gets; None for one that has none yet.
    pub network_namespace: Option<PathBuf>,
    /// Other namespaces of the host that were made for the pod, by type: CRI-O pins those of type "ipc" and
    /// "uts" to files. The guest has its own instead.
    pub pinned_namespaces: BTreeMap<String, PathBuf>,
    /// The id map of the pod's user namespace; None for a pod without one, and for a single container, whose user
    /// namespace is its own.
    pub users: Option<IdMap>,
    /// The content of /etc/resolv.conf, if the engine makes the pod's files; None for this host's.
    pub resolv_conf: Option<String>,
    /// The files of the pod that the engine has made; see [`crate::pod_files`].
    pub files: Vec<PodFile>,
    /// Sysctls of the pod's namespaces, by name: a sandbox's. Those of a container with namespaces of its own are
    /// in the guest's spec.
    pub sysctls: BTreeMap<String, String>,
    /// How long the VM lives.
    pub lifetime: Lifetime,
    /// The pod's name in Kubernetes, "namespace/name", for the log.
    pub name: Option<String>,
}

/// How long a pod's VM lives.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the container that it was started for.
    #[default]
    Container,
    /// Until the pause container is deleted. That container is its pod's sandbox and has no process.
    PauseContainer,
    /// Until the Sandbox API ends it.
    SandboxApi,
}

impl PodSpec {
    /// The guest's host name: the pod's own, or this host's, as under runc, whose UTS namespaces begin as copies
    /// of the host's. An id would not do: with 64 characters it is longer than a label of DNS may be.
    pub fn guest_hostname(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.hostname.clone().unwrap_or_else(host)
    }

    /// Reads the config.json of a pod's first container. If that is not valid, the fields are empty as far as
    /// they can't be read; Create then reports the error.
    pub fn from_oci(config_json: &[u8]) -> Self {
        let spec: Value = serde_json::from_slice(config_json).unwrap_or_default();
        let (linux, annotations) = (&spec["linux"], &spec["annotations"]);
        let lifetime = match annotations::role(annotations) {
            Ok(Role::Sandbox) => Lifetime::PauseContainer,
            Ok(Role::Standalone | Role::Member(_)) | Err(_) => Lifetime::Container,
        };
        let of_container = SizeHints::of_container(&linux["resources"]);
        let size = match lifetime {
            Lifetime::PauseContainer => annotations::size(annotations).or(of_container),
            Lifetime::Container | Lifetime::SandboxApi => of_container,
        };
        let cpus = linux["resources"]["cpu"]["cpus"].as_str();
        Self {
            cgroups_path: linux["cgroupsPath"].as_str().map(str::to_owned),
            size,
            cpus: cpus.and_then(cpu_list::parse).unwrap_or_default(),
            hostname: spec["hostname"]
                .as_str()
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            oom_score_adj: oom_score_adj(&spec),
            network_namespace: namespace_path(&linux["namespaces"], "network"),
            pinned_namespaces: pinned_namespaces(&linux["namespaces"], lifetime),
            users: users(linux, lifetime),
            resolv_conf: None,
            files: Vec::new(),
            sysctls: sysctls(&linux["sysctl"], lifetime),
            lifetime,
            name: annotations::pod_name(annotations),
        }
    }

    /// The pod of a door that has no OCI spec when the VM starts: it fills in what it knows.
    #[must_use]
    pub fn of_sandbox_api() -> Self {
        Self {
            lifetime: Lifetime::SandboxApi,
            ..Self::default()
        }
    }
}

/// The path of the namespace of this type in `linux.namespaces`.
fn namespace_path(namespaces: &Value, kind: &str) -> Option<PathBuf> {
    let mut listed = namespaces.as_array().into_iter().flatten();
    let namespace = listed.find(|namespace| namespace["type"] == kind)?;
    let path = namespace["path"].as_str().filter(|path| !path.is_empty())?;
    Some(path.into())
}

/// Only a sandbox's can be the pod's, and never a process's, such as that of the host's init.
fn pinned_namespaces(namespaces: &Value, lifetime: Lifetime) -> BTreeMap<String, PathBuf> {
    if lifetime != Lifetime::PauseContainer {
        return BTreeMap::new();
    }
    let pinned = |kind: &str| {
        let path = namespace_path(namespaces, kind)?;
        (!path.starts_with("/proc")).then(|| (kind.to_owned(), path))
    };
    ["ipc", "uts"].into_iter().filter_map(pinned).collect()
}

/// A sandbox without id maps is refused by Create.
fn users(linux: &Value, lifetime: Lifetime) -> Option<IdMap> {
    let mut listed = linux["namespaces"].as_array().into_iter().flatten();
    let has_users = listed.any(|namespace| namespace["type"] == "user");
    let map = Some(IdMap::parse(linux)).filter(|map| !map.is_empty());
    map.filter(|_| has_users && lifetime == Lifetime::PauseContainer)
}

/// Strings only: Create refuses anything else.
fn sysctls(sysctl: &Value, lifetime: Lifetime) -> BTreeMap<String, String> {
    let listed = sysctl.as_object().into_iter().flatten();
    let listed = listed.filter(|_| lifetime == Lifetime::PauseContainer);
    let string = |value: &Value| value.as_str().map(str::to_owned);
    listed
        .filter_map(|(name, value)| Some((name.clone(), string(value)?)))
        .collect()
}

/// True if two paths name the same namespace of the host: the same file, in any spelling and below any bind
/// mount.
pub fn is_same_namespace(a: &Path, b: &Path) -> bool {
    let file = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
    a == b || matches!((file(a), file(b)), (Ok(a), Ok(b)) if a == b)
}

/// A spec's process.oomScoreAdj, as far as it says something about the VMM. That of a CRI sandbox does not:
/// containerd gives its pause process -998, whatever the pod's quality-of-service class is.
pub fn oom_score_adj(spec: &Value) -> Option<i32> {
    if annotations::role(&spec["annotations"]) == Ok(Role::Sandbox) {
        return None;
    }
    let adjustment = i32::try_from(spec["process"]["oomScoreAdj"].as_i64()?).ok()?;
    (-1000..=1000).contains(&adjustment).then_some(adjustment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(spec: &Value) -> PodSpec {
        PodSpec::from_oci(spec.to_string().as_bytes())
    }

    fn sandbox(rest: &[(&str, &str)]) -> Value {
        let mut annotations = json!({"io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": "s1"});
        for (name, value) in rest {
            annotations[name] = json!(value);
        }
        json!({ "annotations": annotations })
    }

    #[test]
    fn without_a_name_the_guest_has_this_host_s() {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(read(&json!({"hostname": "web-0"})).guest_hostname(), "web-0");
        for spec in [json!({}), json!({"hostname": ""})] {
            assert_eq!(read(&spec).guest_hostname(), host.trim_end());
        }
    }

    #[test]
    fn the_first_container_s_spec_is_read_even_if_it_is_invalid() {
        assert_eq!(PodSpec::from_oci(b"{"), PodSpec::default());
        let spec = json!({"hostname": "h", "process": {"oomScoreAdj": 1000}, "linux": {
            "cgroupsPath": "/d/a",
            "resources": {"memory": {"limit": 5},
                "cpu": {"quota": 1, "period": 2, "cpus": "0,2"}},
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/a"}]}});
        let want = PodSpec {
            cgroups_path: Some("/d/a".into()),
            size: SizeHints {
                memory_limit: Some(5),
                cpu_quota: Some(1),
                cpu_period: Some(2),
            },
            cpus: vec![0, 2],
            hostname: Some("h".into()),
            oom_score_adj: Some(1000),
            network_namespace: Some("/var/run/netns/a".into()),
            pinned_namespaces: BTreeMap::new(),
            users: None,
            resolv_conf: None,
            files: Vec::new(),
            sysctls: BTreeMap::new(),
            lifetime: Lifetime::Container,
            name: None,
        };
        assert_eq!(read(&spec), want);
    }

    #[test]
    fn a_new_network_namespace_has_no_path() {
        for namespace in [json!({"type": "network"}), json!({"type": "network", "path": ""})] {
            let spec = json!({"linux": {"namespaces": [namespace]}});
            assert_eq!(read(&spec).network_namespace, None);
        }
    }

    #[test]
    fn namespaces_that_are_pinned_for_a_sandbox_are_the_pod_s() {
        let mut spec = sandbox(&[]);
        spec["linux"]["namespaces"] = json!([{"type": "uts", "path": "/proc/1/ns/uts"},
            {"type": "ipc", "path": "/run/ipcns/x"}, {"type": "network", "path": "/run/netns/x"}]);
        let pinned = BTreeMap::from([("ipc".to_owned(), PathBuf::from("/run/ipcns/x"))]);
        assert_eq!(read(&spec).pinned_namespaces, pinned);
        spec["annotations"] = json!({});
        assert_eq!(read(&spec).pinned_namespaces, BTreeMap::new());
    }

    #[test]
    fn the_user_namespace_of_a_sandbox_is_the_pod_s() {
        let ids = json!([{"containerID": 0, "hostID": 70000, "size": 65536}]);
        let linux = json!({"namespaces": [{"type": "user", "path": "/run/pinned"}], "uidMappings": ids,
            "gidMappings": ids});
        let mut spec = sandbox(&[]);
        spec["linux"] = linux.clone();
        assert_eq!(read(&spec).users, Some(IdMap::parse(&linux)));
        spec["linux"]["namespaces"] = json!([{"type": "network"}]);
        assert_eq!(read(&spec).users, None);
        // That of a single container is its own.
        assert_eq!(read(&json!({"linux": linux})).users, None);
    }

    #[test]
    fn sysctls_of_a_sandbox_are_the_pod_s() {
        let mut spec = sandbox(&[]);
        spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "7", "net.x": 5});
        let want = BTreeMap::from([("net.core.somaxconn".to_owned(), "7".to_owned())]);
        assert_eq!(read(&spec).sysctls, want);
        spec["annotations"] = json!({});
        assert_eq!(read(&spec).sysctls, BTreeMap::new());
    }

    #[test]
    fn a_namespace_has_many_paths() {
        let same = |a: &str, b: &str| is_same_namespace(Path::new(a), Path::new(b));
        assert!(same("/proc/self/ns/net", "/proc/thread-self/ns/net"));
        assert!(!same("/proc/self/ns/net", "/proc/self/ns/ipc"));
        assert!(same("/nowhere", "/nowhere") && !same("/nowhere", "/nowhere/else"));
    }

    #[test]
    fn a_sandbox_has_the_size_of_its_annotations() {
        let mut spec = sandbox(&[
            ("io.kubernetes.cri.sandbox-memory", "1000"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "0"),
            ("io.kubernetes.cri.sandbox-cpu-period", "7"),
        ]);
        spec["linux"] = json!({"resources": {"memory": {"limit": 5}, "cpu": {"quota": 3, "period": 4}}});
        let pod = read(&spec);
        let want = SizeHints {
            memory_limit: Some(1000),
            cpu_quota: Some(3),
            cpu_period: Some(4),
        };
        assert_eq!((pod.size, pod.lifetime), (want, Lifetime::PauseContainer));
        // The pod's size is nothing to a container that has its own VM.
        spec["annotations"]["io.kubernetes.cri.container-type"] = json!(null);
        assert_eq!(read(&spec).size.memory_limit, Some(5));
    }

    #[test]
    fn crio_s_sandbox_is_a_pause_container() {
        let spec = json!({"annotations": {"io.kubernetes.cri-o.ContainerType": "sandbox",
            "io.kubernetes.cri-o.SandboxID": "s1", "io.kubernetes.cri-o.Namespace": "web",
            "io.kubernetes.cri-o.KubeName": "a",
            "pod-linux-resources.crio.io": r#"{"memory_limit_in_bytes":1000}"#}});
        let pod = read(&spec);
        assert_eq!(pod.lifetime, Lifetime::PauseContainer);
        assert_eq!(pod.size.memory_limit, Some(1000));
        assert_eq!(pod.name.as_deref(), Some("web/a"));
    }

    #[test]
    fn the_oom_score_adj_is_a_container_s_and_never_the_pause_process_s() {
        let with = |value: Value, mut spec: Value| {
            spec["process"]["oomScoreAdj"] = value;
            read(&spec).oom_score_adj
        };
        assert_eq!(with(json!(-998), sandbox(&[])), None);
        for (value, want) in [
            (json!(-997), Some(-997)),
            (json!(1000), Some(1000)),
            (json!(1001), None),
            (json!(4_294_967_296_u64), None),
            (json!("5"), None),
        ] {
            assert_eq!(with(value.clone(), json!({})), want, "{value}");
        }
    }
}
