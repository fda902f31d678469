//! Identifies a pod: containerd's names for it, and the paths that follow from them. Built by the commands
//! `start` and `delete`.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nacre_protocol::state;

/// Largest spec, bytes.
const MAX_SPEC: u64 = 16 << 20;

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

/// Reads the spec in a bundle. Neither waits for a writer nor reads without a bound: the shim has one thread.
///
/// # Errors
/// With the path, also if it is not a file, or larger than [`MAX_SPEC`].
pub fn read_spec(bundle: &Path) -> io::Result<Vec<u8>> {
    let path = bundle.join("config.json");
    let read = || {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_SPEC {
            let reason = format!("expected a file of at most {MAX_SPEC} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut bytes = Vec::new();
        file.take(MAX_SPEC).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_read_only_from_a_file_of_bounded_size() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("config.json");
        let refused = || read_spec(bundle.path()).unwrap_err();
        assert_eq!(refused().kind(), io::ErrorKind::NotFound);
        // Opening it for reading would wait for a writer.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refused().to_string().contains("config.json: expected a file"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read_spec(bundle.path()).unwrap(), b"{}");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_SPEC + 1)
            .unwrap();
        assert!(refused().to_string().contains("at most 16777216 bytes"));
    }

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
