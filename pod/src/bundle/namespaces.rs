//! A container's namespaces: a guest has its own of each kind, and those of the pod's first container are the pod's. The
//! host's can't be shared.

use nacre_protocol::guest;
use nacre_protocol::spec::Findings;
use serde_json::{Value, json};

/// Kinds that a container must have of its own or of its pod: without, it would want the host's.
const WANTED: [&str; 5] = ["mount", "pid", "network", "ipc", "uts"];

/// The pod that a container is made in.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The pid that containerd knows all its tasks by: the VMM's.
    pub pid: u32,
    /// The id of its first container.
    pub sandbox: &'a str,
}

/// Checks `namespaces`, a spec's; paths become the guest's.
pub fn check(namespaces: &mut Value, pod: Option<Pod<'_>>, findings: &mut Findings) {
    let mut kinds = Vec::new();
    for (index, one) in namespaces.as_array_mut().into_iter().flatten().enumerate() {
        let kind = one["type"].as_str().unwrap_or_default().to_owned();
        let path = one["path"].as_str().unwrap_or_default().to_owned();
        if kinds.contains(&kind) {
            findings.refuse(
                format!("linux.namespaces[{index}].type"),
                format!("a second {kind:?}"),
            );
        }
        if path.is_empty() {
            if let Some(one) = one.as_object_mut() {
                one.remove("path");
            }
        } else if let Some(pod) = pod.filter(|pod| is_of_pod(&kind, &path, pod.pid)) {
            one["path"] = json!(guest::namespace_of(pod.sandbox));
        } else {
            let reason = "names a namespace of the host, which a guest can't enter";
            findings.refuse(format!("linux.namespaces[{index}].path"), reason);
        }
        kinds.push(kind);
    }
    for missing in WANTED
        .iter()
        .filter(|wanted| !kinds.iter().any(|kind| kind == *wanted))
    {
        let reason =
            format!("there is no {missing:?}: the host's {missing} namespace can't be shared with a guest");
        findings.refuse("linux.namespaces", reason);
    }
}

/// Whether `path` is the namespace of this kind of the pod's first container, by the pid that containerd knows.
fn is_of_pod(kind: &str, path: &str, pid: u32) -> bool {
    let name = match kind {
        "network" => "net",
        // A container's mounts are its own.
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
    fn those_of_the_pod_are_its_first_containers() {
        let (namespaces, refusals) = checked(all("/proc/77/ns/uts"));
        assert_eq!(refusals, "");
        assert_eq!(namespaces[4], json!({"type": "uts", "path": "container:s"}));
        assert_eq!(namespaces[1], json!({"type": "pid"}));
        let mut namespaces = all("");
        namespaces[2]["path"] = json!("/proc/77/ns/net");
        assert_eq!(checked(namespaces).0[2]["path"], "container:s");
    }

    #[test]
    fn the_hosts_are_refused_by_path() {
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
    fn a_kind_that_is_missing_or_twice_there_is_refused() {
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
