//! Checks linux.namespaces: a container may have new namespaces or join those of the pod's first container,
//! all of them in the guest. A namespace of the host can't be shared with a guest.

use nacre_protocol::guest;
use nacre_protocol::spec::Findings;
use serde_json::{Value, json};

/// Types that a spec must list: if one is missing, the container shares the host's namespace.
const REQUIRED: [&str; 5] = ["mount", "pid", "network", "ipc", "uts"];

/// The pod that a container is created in.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The VMM's host pid, which containerd has as the pid of every task.
    pub pid: u32,
    /// The id of the pod's first container.
    pub sandbox: &'a str,
}

/// Checks `namespaces` and rewrites their paths for the guest.
pub fn check(namespaces: &mut Value, pod: Option<Pod<'_>>, findings: &mut Findings) {
    let mut kinds = Vec::new();
    for (index, namespace) in namespaces.as_array_mut().into_iter().flatten().enumerate() {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let path = namespace["path"].as_str().unwrap_or_default().to_owned();
        if kinds.contains(&kind) {
            findings.refuse(
                format!("linux.namespaces[{index}].type"),
                format!("a second {kind:?}"),
            );
        }
        if path.is_empty() {
            if let Some(namespace) = namespace.as_object_mut() {
                namespace.remove("path");
            }
        } else if let Some(pod) = pod.filter(|pod| is_of_pod(&kind, &path, pod.pid)) {
            namespace["path"] = json!(guest::namespace_of(pod.sandbox));
        } else {
            let reason = "names a namespace of the host, which a guest can't enter";
            findings.refuse(format!("linux.namespaces[{index}].path"), reason);
        }
        kinds.push(kind);
    }
    for missing in REQUIRED
        .iter()
        .filter(|required| !kinds.iter().any(|kind| kind == *required))
    {
        let reason =
            format!("there is no {missing:?}: the host's {missing} namespace can't be shared with a guest");
        findings.refuse("linux.namespaces", reason);
    }
}

/// True if `path` is /proc/PID/ns/... of the pid that containerd has for the pod's tasks, which stands for
/// the namespace of the pod's first container.
fn is_of_pod(kind: &str, path: &str, pid: u32) -> bool {
    let name = match kind {
        "network" => "net",
        // Mount namespaces are never shared within a pod.
        "mount" => return false,
        other => other,
    };
    pid != 0 && path == format!("/proc/{pid}/ns/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(mut namespaces: Value) -> (Value, String) {
        let mut findings = Findings::default();
        let pod = Pod {
            pid: 77,
            sandbox: "s",
        };
        check(&mut namespaces, Some(pod), &mut findings);
        (namespaces, findings.refusals())
    }

    fn all(uts: &str) -> Value {
        json!([{"type": "mount"}, {"type": "pid", "path": ""}, {"type": "network"}, {"type": "ipc"},
            {"type": "uts", "path": uts}])
    }

    #[test]
    fn a_path_of_the_pod_s_pid_joins_its_first_container() {
        let (namespaces, refusals) = checked(all("/proc/77/ns/uts"));
        assert_eq!(refusals, "");
        assert_eq!(namespaces[4], json!({"type": "uts", "path": "container:s"}));
        assert_eq!(namespaces[1], json!({"type": "pid"}));
        let mut namespaces = all("");
        namespaces[2]["path"] = json!("/proc/77/ns/net");
        assert_eq!(checked(namespaces).0[2]["path"], "container:s");
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_path() {
        for path in [
            "/proc/1/ns/uts",
            "/proc/77/ns/ipc",
            "/run/netns/x",
            "/proc/77/ns/../../1/ns/uts",
            "container:s",
        ] {
            let (_, refusals) = checked(all(path));
            assert!(
                refusals.starts_with("linux.namespaces[4].path: "),
                "{path}: {refusals}"
            );
        }
        let mut namespaces = all("");
        namespaces[0]["path"] = json!("/proc/77/ns/mnt");
        assert!(checked(namespaces).1.starts_with("linux.namespaces[0].path: "));
        let mut findings = Findings::default();
        check(&mut all("/proc/77/ns/uts"), None, &mut findings);
        assert_eq!(findings.refused.len(), 1);
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
        assert_eq!(checked(json!(null)).1.matches("there is no").count(), 5);
    }
}
