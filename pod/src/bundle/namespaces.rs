//! Checks linux.namespaces: a container may have new namespaces or those of its pod, all of them in the
//! guest. A namespace of the host can't be shared with a guest.
//!
//! The guest's initial network, IPC and UTS namespaces are the pod's: a container that has the pod's gets
//! none of that type in the guest's spec. The pod's first container requests new ones and has the pod's, too,
//! unless it has a user namespace, which owns none of them. Any later container that requests a new one gets
//! a new one.

use std::path::Path;

use nacre_protocol::guest;
use nacre_protocol::spec::Findings;
use serde_json::{Value, json};

use crate::pod_spec::{Lifetime, PodSpec};

/// Types that a spec must list: if one is missing, the container shares the host's namespace. Each with what
/// asks for that, in Kubernetes and with ctr or Docker.
const REQUIRED: [(&str, &str); 5] = [
    ("mount", ""),
    ("pid", "hostPID: true or --pid host"),
    ("network", "hostNetwork: true, --net-host or --network host"),
    ("ipc", "hostIPC: true or --ipc host"),
    ("uts", "--uts host"),
];

/// The pod that a container is created in.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The VMM's host pid, which containerd has as the pid of every task; 0 without a VM.
    pub pid: u32,
    /// The id of the pod's first container.
    pub sandbox: &'a str,
    /// What its VM was started for.
    pub spec: &'a PodSpec,
    /// The running containers that have a pid namespace of their own, by id.
    pub own_pids: &'a [String],
    /// Whether a running container shares the pod's pid namespace.
    pub shares_pids: bool,
    /// What the container's writable layer is to be a copy of, if it is to be a disk.
    pub writable_layer: Option<&'a Path>,
    /// True if two paths name the same namespace of the host.
    pub is_same: fn(&Path, &Path) -> bool,
}

/// What a namespace in a spec is in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InGuest {
    /// A new one.
    New,
    /// The guest's initial one: not listed in the guest's spec.
    Initial,
    /// The one at this path, which the agent understands.
    At(String),
    /// None: refused for this reason.
    Refused(&'static str),
}

/// Checks the namespaces of container `id` and rewrites them for the guest.
pub fn check(id: &str, namespaces: &mut Value, pod: Pod<'_>, findings: &mut Findings) {
    let mut kinds = Vec::new();
    let listed: Vec<Value> = namespaces.as_array_mut().map(std::mem::take).unwrap_or_default();
    let has_users = listed.iter().any(|namespace| namespace["type"] == "user");
    let mut in_guest = Vec::new();
    for (index, mut namespace) in listed.into_iter().enumerate() {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let path = namespace["path"].as_str().unwrap_or_default();
        if kinds.contains(&kind) {
            findings.refuse(
                format!("linux.namespaces[{index}].type"),
                format!("a second {kind:?}"),
            );
        }
        match pod.in_guest(id, &kind, path, has_users) {
            InGuest::Initial => {}
            InGuest::New => {
                if let Some(namespace) = namespace.as_object_mut() {
                    namespace.remove("path");
                }
                in_guest.push(namespace);
            }
            InGuest::At(path) => {
                namespace["path"] = json!(path);
                in_guest.push(namespace);
            }
            InGuest::Refused(reason) => findings.refuse(format!("linux.namespaces[{index}].path"), reason),
        }
        kinds.push(kind);
    }
    if let Some(namespaces) = namespaces.as_array_mut() {
        *namespaces = in_guest;
    }
    refuse_missing(&kinds, findings);
}

fn refuse_missing(kinds: &[String], findings: &mut Findings) {
    for (missing, asked_by) in REQUIRED {
        if kinds.iter().any(|kind| kind == missing) {
            continue;
        }
        let advice = match asked_by {
            "" => String::new(),
            asked_by => format!(" (leave out {asked_by}, or use another runtime for this container)"),
        };
        let reason = format!(
            "there is no {missing:?}: the host's {missing} namespace can't be shared with a guest{advice}"
        );
        findings.refuse("linux.namespaces", reason);
    }
}

impl Pod<'_> {
    fn in_guest(&self, id: &str, kind: &str, path: &str, has_users: bool) -> InGuest {
        // The Sandbox API makes a pod without a container; a later one may have the pod's id.
        let is_first = id == self.sandbox && self.spec.lifetime != Lifetime::SandboxApi;
        let is_initial = matches!(kind, "network" | "ipc" | "uts");
        if path.is_empty() {
            return if is_initial && is_first && !has_users {
                InGuest::Initial
            } else {
                InGuest::New
            };
        }
        if is_initial && (self.names_task(kind, path) || self.owns(is_first, kind, path)) {
            return InGuest::Initial;
        }
        if kind == "user" && is_first && self.spec.users.is_some() {
            // containerd pins the one that the pod's network namespace on the host belongs to.
            return InGuest::At(guest::POD_NAMESPACE.to_owned());
        }
        if !self.names_task(kind, path) {
            return InGuest::Refused("names a namespace of the host, which a guest can't enter");
        }
        match (kind, self.spec.lifetime) {
            ("user", Lifetime::PauseContainer | Lifetime::SandboxApi) if self.spec.users.is_some() => {
                InGuest::At(guest::POD_NAMESPACE.to_owned())
            }
            // Mount namespaces are never shared within a pod.
            ("mount", _) => InGuest::Refused("names the mount namespace of another container"),
            (_, Lifetime::Container) => InGuest::At(guest::namespace_of(self.sandbox)),
            ("pid", Lifetime::PauseContainer | Lifetime::SandboxApi) => self.pids(),
            (_, Lifetime::PauseContainer | Lifetime::SandboxApi) => {
                InGuest::Refused("the pod's sandbox has no process and no such namespace of its own")
            }
        }
    }

    /// What the pid namespace of a task is in the guest. All tasks of the pod have one pid, so its path may
    /// mean the pod's namespace (shareProcessNamespace in Kubernetes) or that of any container (the target of
    /// an ephemeral container). In a pod of the first kind, no container has one of its own.
    fn pids(&self) -> InGuest {
        match self.own_pids {
            [target] if !self.shares_pids => InGuest::At(guest::namespace_of(target)),
            [_, _, ..] if !self.shares_pids => InGuest::Refused(
                "names the processes of one container, and the pod has several, which can't be told apart by \
                 their tasks' pid (set shareProcessNamespace: true in the pod, or name no target container)",
            ),
            [] | [_, ..] => InGuest::At(guest::POD_NAMESPACE.to_owned()),
        }
    }

    /// True if `path` is /proc/PID/ns/... of the pid that containerd has for the pod's tasks.
    fn names_task(&self, kind: &str, path: &str) -> bool {
        let name = match kind {
            "network" => "net",
            "mount" => "mnt",
            other => other,
        };
        self.pid != 0 && path == format!("/proc/{}/ns/{name}", self.pid)
    }

    /// True if `path` is a namespace of the host that was made for this pod: its network namespace; or, in
    /// the spec of a sandbox, one that CRI-O has pinned to a file.
    fn owns(&self, is_first: bool, kind: &str, path: &str) -> bool {
        let path = Path::new(path);
        if kind == "network" {
            // The first container's path is the pod's.
            let network = self.spec.network_namespace.as_deref();
            return is_first || network.is_some_and(|network| (self.is_same)(network, path));
        }
        let pinned = self.spec.pinned_namespaces.get(kind);
        pinned.is_some_and(|pinned| (self.is_same)(pinned, path))
    }
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pids {
    /// Its own.
    Own,
    /// Those of the pod.
    Pod,
    /// Those of another container.
    Other,
}

impl Pids {
    /// By the guest's spec.
    pub fn of(namespaces: &Value) -> Self {
        let mut listed = namespaces.as_array().into_iter().flatten();
        let path = listed
            .find(|namespace| namespace["type"] == "pid")
            .and_then(|namespace| namespace["path"].as_str());
        match path {
            None => Self::Own,
            Some(guest::POD_NAMESPACE) => Self::Pod,
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(lifetime: Lifetime) -> PodSpec {
        PodSpec {
            network_namespace: Some("/run/netns/x".into()),
            pinned_namespaces: [("ipc".to_owned(), "/run/ipcns/x".into())].into(),
            lifetime,
            ..PodSpec::default()
        }
    }

    fn checked_in(lifetime: Lifetime, id: &str, namespaces: Value) -> (Value, String) {
        checked_among(&[], false, lifetime, id, namespaces)
    }

    fn checked_among(
        own_pids: &[String],
        shares_pids: bool,
        lifetime: Lifetime,
        id: &str,
        mut namespaces: Value,
    ) -> (Value, String) {
        let mut findings = Findings::default();
        let pod = Pod {
            pid: 77,
            sandbox: "s",
            spec: &spec(lifetime),
            own_pids,
            shares_pids,
            writable_layer: None,
            is_same: |a, b| a == b,
        };
        check(id, &mut namespaces, pod, &mut findings);
        (namespaces, findings.refusals())
    }

    /// Of a member of a pod.
    fn checked(namespaces: Value) -> (Value, String) {
        checked_in(Lifetime::PauseContainer, "a", namespaces)
    }

    fn all(kind: &str, path: &str) -> Value {
        let mut all = json!([{"type": "mount"}, {"type": "pid", "path": ""}, {"type": "network"}, {"type": "ipc"},
            {"type": "uts"}]);
        let listed = all.as_array_mut().unwrap();
        match listed.iter_mut().find(|namespace| namespace["type"] == kind) {
            Some(namespace) => namespace["path"] = json!(path),
            None => listed.push(json!({"type": kind, "path": path})),
        }
        all
    }

    fn kinds(namespaces: &Value) -> Vec<&str> {
        let listed = namespaces.as_array().into_iter().flatten();
        listed
            .filter_map(|namespace| namespace["type"].as_str())
            .collect()
    }

    #[test]
    fn the_pod_s_namespaces_are_the_guest_s_initial_ones() {
        for (kind, path) in [
            ("network", "/proc/77/ns/net"),
            ("network", "/run/netns/x"),
            ("ipc", "/proc/77/ns/ipc"),
            ("ipc", "/run/ipcns/x"),
            ("uts", "/proc/77/ns/uts"),
        ] {
            let (namespaces, refusals) = checked(all(kind, path));
            assert_eq!(refusals, "", "{path}");
            let want: Vec<&str> = ["mount", "pid", "network", "ipc", "uts"]
                .into_iter()
                .filter(|other| *other != kind)
                .collect();
            assert_eq!(kinds(&namespaces), want, "{path}");
        }
    }

    #[test]
    fn the_first_container_s_new_namespaces_are_the_pod_s() {
        let first = |namespaces| checked_in(Lifetime::Container, "s", namespaces);
        assert_eq!(
            first(all("pid", "")).0,
            json!([{"type": "mount"}, {"type": "pid"}])
        );
        // Its network namespace is the one that the pod gets its links from.
        assert_eq!(first(all("network", "/run/netns/y")).1, "");
        // A user namespace must own the others.
        let (namespaces, refusals) = first(all("user", ""));
        assert_eq!(refusals, "");
        assert_eq!(
            kinds(&namespaces),
            ["mount", "pid", "network", "ipc", "uts", "user"]
        );
        // A later container's are its own.
        let (namespaces, _) = checked_in(Lifetime::Container, "a", all("pid", ""));
        assert_eq!(kinds(&namespaces), ["mount", "pid", "network", "ipc", "uts"]);
    }

    #[test]
    fn a_container_with_the_id_of_a_sandbox_without_one_is_as_any_other() {
        let same_id = |namespaces| checked_in(Lifetime::SandboxApi, "s", namespaces);
        let (_, refusals) = same_id(all("network", "/run/netns/y"));
        assert!(refusals.contains("names a namespace of the host"), "{refusals}");
        assert_eq!(same_id(all("network", "/run/netns/x")).1, "");
        let (namespaces, _) = same_id(all("pid", ""));
        assert_eq!(kinds(&namespaces), ["mount", "pid", "network", "ipc", "uts"]);
    }

    #[test]
    fn pids_are_shared_with_the_first_container_or_with_the_pod() {
        let path = |lifetime| {
            let (namespaces, refusals) = checked_in(lifetime, "a", all("pid", "/proc/77/ns/pid"));
            assert_eq!(refusals, "");
            namespaces[1]["path"].as_str().unwrap().to_owned()
        };
        assert_eq!(path(Lifetime::Container), "container:s");
        assert_eq!(path(Lifetime::PauseContainer), "pod:");
        assert_eq!(path(Lifetime::SandboxApi), "pod:");
        let (_, refusals) = checked(all("user", "/proc/77/ns/user"));
        assert!(refusals.contains("no process"), "{refusals}");
    }

    #[test]
    fn the_target_of_an_ephemeral_container_is_the_only_one_with_pids_of_its_own() {
        let among = |own: &[&str], shares| {
            let own: Vec<String> = own.iter().map(|id| (*id).to_owned()).collect();
            let listed = all("pid", "/proc/77/ns/pid");
            let (namespaces, refusals) = checked_among(&own, shares, Lifetime::PauseContainer, "a", listed);
            (Pids::of(&namespaces), namespaces[1]["path"].clone(), refusals)
        };
        assert_eq!(among(&[], false), (Pids::Pod, json!("pod:"), String::new()));
        assert_eq!(
            among(&["b"], false),
            (Pids::Other, json!("container:b"), String::new())
        );
        assert_eq!(among(&["b"], true), (Pids::Pod, json!("pod:"), String::new()));
        assert!(
            among(&["b", "c"], false)
                .2
                .contains("shareProcessNamespace: true")
        );
        assert_eq!(Pids::of(&all("pid", "")[0]), Pids::Own);
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_path() {
        for (kind, path) in [
            ("uts", "/proc/1/ns/uts"),
            ("uts", "/proc/77/ns/ipc"),
            ("uts", "/proc/77/ns/../../1/ns/uts"),
            ("uts", "container:s"),
            ("pid", "pod:"),
            ("ipc", "/run/ipcns/y"),
            ("network", "/run/netns/y"),
            ("network", "/proc/1/ns/net"),
            ("mount", "/proc/77/ns/mnt"),
        ] {
            let (_, refusals) = checked(all(kind, path));
            assert!(
                refusals.starts_with("linux.namespaces[") && refusals.contains("].path: "),
                "{kind} {path}: {refusals}"
            );
        }
        for path in ["/proc/1/ns/uts", "/run/utsns/x"] {
            let (_, refusals) = checked_in(Lifetime::Container, "s", all("uts", path));
            assert!(refusals.starts_with("linux.namespaces[4].path: "), "{refusals}");
        }
    }

    #[test]
    fn a_type_that_is_missing_or_listed_twice_is_refused() {
        let (_, refusals) = checked(json!([{"type": "mount"}, {"type": "mount"}]));
        assert!(
            refusals.contains("linux.namespaces[1].type: a second \"mount\""),
            "{refusals}"
        );
        for kind in ["pid", "network", "ipc", "uts"] {
            assert!(refusals.contains(&format!("there is no {kind:?}")), "{refusals}");
        }
        assert!(refusals.contains("leave out hostNetwork: true"), "{refusals}");
        assert_eq!(checked(json!(null)).1.matches("there is no").count(), 5);
    }
}
