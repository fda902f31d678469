//! User ids of a container with a user namespace, as the guest's initial user namespace numbers them.

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::has_namespace;

/// The uid in the guest's initial user namespace of `uid` in the container. A uid that is not mapped is
/// returned unchanged: no process of the container can have it.
pub fn guest_uid(spec: &Spec, uid: u32) -> u32 {
    let linux = spec.linux().as_ref();
    let mappings = linux.and_then(|linux| linux.uid_mappings().as_ref());
    let has_user_namespace = has_namespace(spec, LinuxNamespaceType::User);
    let mut found = None;
    for mapping in mappings.into_iter().flatten().filter(|_| has_user_namespace) {
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
    fn uids_are_mapped_only_in_a_user_namespace() {
        let spec = |kind: &str| -> Spec {
            serde_json::from_value(serde_json::json!({"ociVersion": "1.0", "linux": {
                "namespaces": [{"type": kind}],
                "uidMappings": [{"containerID": 10, "hostID": 1000, "size": 5}]}}))
            .unwrap()
        };
        for (id, want) in [(10, 1000), (14, 1004), (9, 9), (15, 15)] {
            assert_eq!(guest_uid(&spec("user"), id), want);
            assert_eq!(guest_uid(&spec("pid"), id), id);
        }
    }
}
