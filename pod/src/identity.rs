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
}

/// The spec of a bundle.
pub fn config_json(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

#[cfg(test)]
mod tests {
    use super::*;

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
