//! Identifies a pod: containerd's names for it, and the paths that follow from them. Built by the commands
//! `start` and `delete`.

use std::path::{Path, PathBuf};

use nacre_protocol::state;

/// A pod's names and its bundle.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The sandbox's id; without CRI annotations, the container's id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC address.
    pub address: String,
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// The name of the pod's directory: [`state::pod_key`] of the names above.
    pub key: String,
}

impl Identity {
    /// Identifies the pod of sandbox `id`, which containerd at `address` started in `bundle`.
    pub fn new(address: &str, namespace: &str, id: &str, bundle: PathBuf) -> Self {
        Self {
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            address: address.to_owned(),
            bundle,
            key: state::pod_key(address, namespace, id),
        }
    }

    /// The pod's directory below /run/nacre.
    pub fn directory(&self) -> PathBuf {
        state::pod_dir(&self.key)
    }

    /// The pod's ttrpc socket, or a symbolic link to it if containerd wants it elsewhere. The path has 36 bytes; the longest that a socket may have is 107 (unix(7)).
    pub fn socket(&self) -> PathBuf {
        self.directory().join(state::SOCKET_FILE)
    }
}

/// The file with a bundle's spec.
pub fn config_json(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_s_path_is_short_enough() {
        let identity = Identity::new(
            "/run/containerd/containerd.sock",
            &"n".repeat(76),
            &"i".repeat(76),
            "/".into(),
        );
        assert!(identity.socket().as_os_str().len() <= 107);
    }
}
