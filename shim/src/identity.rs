//! Who a pod is: containerd's names for it and where its files are. Made once by `start` or `delete`, then only read.

use std::path::{Path, PathBuf};

use nacre_protocol::state;

/// A pod's names.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The sandbox's id; without CRI annotations the container's.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC address.
    pub address: String,
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// Names the pod's directory.
    pub key: String,
}

impl Identity {
    /// The pod of sandbox `id` in `bundle`.
    pub fn new(address: &str, namespace: &str, id: &str, bundle: PathBuf) -> Self {
        Self {
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            address: address.to_owned(),
            bundle,
            key: state::pod_key(address, namespace, id),
        }
    }

    /// The pod's directory.
    pub fn directory(&self) -> PathBuf {
        state::pod_dir(&self.key)
    }

    /// The pod's ttrpc socket; 36 bytes, of the 107 that a socket's path may have.
    pub fn socket(&self) -> PathBuf {
        self.directory().join(state::SOCKET_FILE)
    }

    /// The socket as containerd wants to be told.
    pub fn socket_address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }
}

/// The sandbox that a container joins, by the annotations of its bundle's spec; None where it is its own.
pub fn sandbox_of(config_json: &[u8]) -> Option<String> {
    const TYPE: &str = "io.kubernetes.cri.container-type";
    const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    // `start` is on the way of every container: most specs are not read further than this.
    config_json
        .windows(SANDBOX.len())
        .find(|window| *window == SANDBOX.as_bytes())?;
    let spec: Spec = serde_json::from_slice(config_json).ok()?;
    let is_container = spec.annotations.get(TYPE).is_some_and(|kind| kind == "container");
    spec.annotations.get(SANDBOX).filter(|_| is_container).cloned()
}

/// The spec of a bundle.
pub fn config_json(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_a_pod_name_their_sandbox() {
        let spec = |kind: &str| {
            format!(
                r#"{{"annotations":{{"io.kubernetes.cri.container-type":"{kind}","io.kubernetes.cri.sandbox-id":"s1"}}}}"#
            )
        };
        assert_eq!(sandbox_of(spec("container").as_bytes()), Some("s1".into()));
        assert_eq!(sandbox_of(spec("sandbox").as_bytes()), None);
        assert_eq!(sandbox_of(br#"{"annotations":{}}"#), None);
        assert_eq!(sandbox_of(b"not json"), None);
    }

    #[test]
    fn the_socket_path_fits() {
        let identity = Identity::new(
            "/run/containerd/containerd.sock",
            &"n".repeat(76),
            &"i".repeat(76),
            "/".into(),
        );
        assert!(identity.socket().as_os_str().len() <= 107);
    }
}
