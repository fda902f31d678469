//! The user namespace of a container that joins its pod's. Pure.

use nacre_protocol::guest;
use nacre_protocol::spec::Findings;
use serde_json::Value;

use super::namespaces::Pod;
use crate::mount::{IdMap, IdRange};
use crate::pod_spec::Lifetime;

/// Checks that container `id` has the id map of the pod's user namespace if it joins that, and adds the map if it
/// has none. `linux` is the spec's, with the guest's namespaces.
pub fn check(id: &str, linux: &mut Value, pod: Pod<'_>, findings: &mut Findings) {
    let mut listed = linux["namespaces"].as_array().into_iter().flatten();
    let Some(namespace) = listed.find(|namespace| namespace["type"] == "user") else {
        return;
    };
    let joins_pod = namespace["path"] == guest::POD_NAMESPACE;
    let own = IdMap::parse(linux);
    match &pod.spec.users {
        Some(users) if joins_pod && own.is_empty() => {
            for (field, ranges) in [("uidMappings", &users.uids), ("gidMappings", &users.gids)] {
                linux[field] = ranges.iter().map(IdRange::to_json).collect();
            }
        }
        Some(users) if joins_pod && own != *users => {
            let [own, users] = [&own, users].map(|map| format!("{:?}", map.to_string()));
            let reason = format!("the pod's user namespace has the id map {users}, the container has {own}");
            findings.refuse("linux.uidMappings", reason);
        }
        None if id == pod.sandbox && pod.spec.lifetime == Lifetime::PauseContainer => {
            findings.refuse(
                "linux.uidMappings",
                "missing: the pod's user namespace needs an id map",
            );
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::namespaces;
    use crate::pod_spec::PodSpec;
    use serde_json::json;

    /// The user namespace of container `id` of a pod with the id map `users`, and its mappings.
    fn users_of(id: &str, users: Option<&Value>, path: &str, mappings: &Value) -> (Value, Value, String) {
        let spec = PodSpec {
            users: users.map(|ranges| IdMap::parse(&json!({"uidMappings": ranges, "gidMappings": ranges}))),
            lifetime: Lifetime::PauseContainer,
            ..PodSpec::default()
        };
        let pod = Pod {
            pid: 77,
            sandbox: "s",
            spec: &spec,
            own_pids: &[],
            shares_pids: false,
            writable_layer: None,
            is_same: |a, b| a == b,
        };
        let mut linux = json!({
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"},
                {"type": "uts"}, {"type": "user", "path": path}],
            "uidMappings": mappings,
            "gidMappings": mappings,
        });
        let mut findings = Findings::default();
        namespaces::check(id, &mut linux["namespaces"], pod, &mut findings);
        check(id, &mut linux, pod, &mut findings);
        let mut listed = linux["namespaces"].as_array().into_iter().flatten();
        let namespace = listed.find(|namespace| namespace["type"] == "user").cloned();
        (
            namespace.unwrap_or_default()["path"].take(),
            linux["gidMappings"].take(),
            findings.refusals(),
        )
    }

    #[test]
    fn a_user_namespace_is_shared_with_the_pod() {
        let ids = |host| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
        let (pod, none) = (ids(200_000), json!([]));
        let task = "/proc/77/ns/user";
        for mappings in [&pod, &none] {
            let joined = users_of("a", Some(&pod), task, mappings);
            assert_eq!(joined, (json!("pod:"), pod.clone(), String::new()));
        }
        let (_, _, refusals) = users_of("a", Some(&pod), task, &ids(7));
        assert_eq!(
            refusals,
            "linux.uidMappings: the pod's user namespace has the id map \"0:200000:65536\", the container has \
             \"0:7:65536\""
        );
        // The one that containerd has pinned, and with containerd 1.7 none.
        for path in ["/run/pinned", ""] {
            assert_eq!(users_of("s", Some(&pod), path, &pod).2, "");
        }
        assert!(
            users_of("a", Some(&pod), "/run/pinned", &pod)
                .2
                .contains("of the host")
        );
        assert!(
            users_of("s", None, "", &none)
                .2
                .contains("linux.uidMappings: missing")
        );
        assert!(users_of("a", None, task, &pod).2.contains("no process"));
        // A new one, with ids of its own.
        assert_eq!(
            users_of("a", Some(&pod), "", &ids(7)),
            (Value::Null, ids(7), String::new())
        );
    }
}
