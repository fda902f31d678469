//! Users of a container with a user namespace, as the guest numbers them.

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::has_namespace;

/// The guest's user that is `uid` in the container. One that is not mapped can't be anybody there, and stays.
pub fn outside_uid(spec: &Spec, uid: u32) -> u32 {
    let linux = spec.linux().as_ref();
    let mappings = linux.and_then(|linux| linux.uid_mappings().as_ref());
    let has_own = has_namespace(spec, LinuxNamespaceType::User);
    let mut found = None;
    for mapping in mappings.into_iter().flatten().filter(|_| has_own) {
        let offset = uid
            .checked_sub(mapping.container_id())
            .filter(|offset| *offset < mapping.size());
        found = found.or(offset.and_then(|offset| mapping.host_id().checked_add(offset)));
    }
    found.unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_mappings_of_a_user_namespace() {
        let spec = |kind: &str| -> Spec {
            serde_json::from_value(serde_json::json!({"ociVersion": "1.0", "linux": {
                "namespaces": [{"type": kind}],
                "uidMappings": [{"containerID": 10, "hostID": 1000, "size": 5}]}}))
            .unwrap()
        };
        for (id, want) in [(10, 1000), (14, 1004), (9, 9), (15, 15)] {
            assert_eq!(outside_uid(&spec("user"), id), want);
            assert_eq!(outside_uid(&spec("pid"), id), id);
        }
    }
}
