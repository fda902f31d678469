//! Finds the pod's /dev/shm among a container's mounts. CRI has a tmpfs of the host for each pod and binds it
//! to /dev/shm of its containers. In the guest it is one tmpfs of the guest: memory that is mapped shared and
//! futexes in it need one kernel, and POSIX shared memory is nothing else. With the Sandbox API there is no
//! tmpfs of the host: then it replaces the tmpfs that the spec has for the container itself, if that shares
//! the pod's IPC namespace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::guest;
use serde_json::{Value, json};

use super::namespaces::Pod;
use super::normalized;
use crate::pod_spec::Lifetime;

/// Where containers have shared memory.
const DEV_SHM: &str = "/dev/shm";

/// Makes each mount of `spec` that is the pod's /dev/shm a bind mount of the guest's. Returns what they were
/// bound to on the host, by their index.
pub fn replace_all(spec: &mut Value, pod: Pod<'_>) -> BTreeMap<usize, PathBuf> {
    let shares_ipc = !super::has_namespace(spec, "ipc");
    // Indexing would add the field.
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    let mounts = mounts.into_iter().flatten();
    let replaced = mounts.map(|mount| replace(mount, pod, shares_ipc)).enumerate();
    replaced
        .filter_map(|(index, source)| Some((index, source?)))
        .collect()
}

/// If the mount is the pod's /dev/shm, makes it a bind mount of the guest's, and returns what it was bound to
/// on the host, or an empty path. That is a directory "shm" that belongs to the sandbox by its path, such as
/// /run/containerd/io.containerd.grpc.v1.cri/sandboxes/ID/shm. Any other directory, such as the host's own
/// /dev/shm, is shared with processes of the host.
fn replace(mount: &mut Value, pod: Pod<'_>, shares_ipc: bool) -> Option<PathBuf> {
    let source = PathBuf::from(mount["source"].as_str()?);
    let destination = Path::new(mount["destination"].as_str()?);
    let is_of_sandbox = source.file_name().is_some_and(|name| name == "shm")
        && source.components().any(|part| part.as_os_str() == pod.sandbox);
    if pod.spec.lifetime == Lifetime::Container || normalized(destination) != Path::new(DEV_SHM) {
        return None;
    }
    let is_left_to_engine =
        pod.spec.lifetime == Lifetime::SandboxApi && mount["type"] == "tmpfs" && shares_ipc;
    let source = match (is_of_sandbox, is_left_to_engine) {
        (true, _) => source,
        (false, true) => {
            // The options of a tmpfs, such as its size, are not those of a bind mount.
            mount["options"] = json!(["rbind", "nosuid", "noexec", "nodev"]);
            PathBuf::new()
        }
        (false, false) => return None,
    };
    mount["source"] = json!(guest::POD_SHM);
    mount["type"] = json!("bind");
    Some(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_spec::PodSpec;

    /// What is replaced of `mount` in a container of a pod that lives for `lifetime`.
    fn replaced_in(lifetime: Lifetime, shares_ipc: bool, mut mount: Value) -> (Option<PathBuf>, Value) {
        let spec = PodSpec {
            lifetime,
            ..PodSpec::default()
        };
        let pod = Pod {
            pid: 5,
            sandbox: "s",
            spec: &spec,
            own_pids: &[],
            shares_pids: false,
            writable_layer: None,
            is_same: |a, b| a == b,
        };
        (replace(&mut mount, pod, shares_ipc), mount)
    }

    fn replaced(source: &str, destination: &str, lifetime: Lifetime) -> (Option<PathBuf>, Value) {
        let mount = json!({"source": source, "destination": destination, "options": ["rbind", "rw"]});
        replaced_in(lifetime, true, mount)
    }

    #[test]
    fn the_sandbox_s_shm_is_the_guest_s() {
        for lifetime in [Lifetime::PauseContainer, Lifetime::SandboxApi] {
            for source in [
                "/run/cri/sandboxes/s/shm",
                "/run/overlay-containers/s/userdata/shm",
            ] {
                let (found, mount) = replaced(source, "/dev/../dev/shm/", lifetime);
                assert_eq!(found.as_deref(), Some(Path::new(source)));
                assert_eq!(
                    (&mount["source"], &mount["type"]),
                    (&json!(guest::POD_SHM), &json!("bind"))
                );
                assert_eq!(mount["options"], json!(["rbind", "rw"]));
            }
        }
    }

    #[test]
    fn other_directories_stay_the_host_s() {
        for (source, destination, lifetime) in [
            ("/dev/shm", "/dev/shm", Lifetime::PauseContainer),
            (
                "/run/cri/sandboxes/other/shm",
                "/dev/shm",
                Lifetime::PauseContainer,
            ),
            (
                "/run/cri/sandboxes/s/resolv.conf",
                "/dev/shm",
                Lifetime::PauseContainer,
            ),
            ("/run/cri/sandboxes/s/shm", "/shm", Lifetime::PauseContainer),
            ("/run/cri/sandboxes/s/shm", "/dev/shm", Lifetime::Container),
        ] {
            let (found, mount) = replaced(source, destination, lifetime);
            assert_eq!(
                (found, mount["source"].as_str()),
                (None, Some(source)),
                "{destination}"
            );
        }
    }

    #[test]
    fn a_tmpfs_is_replaced_if_the_engine_makes_the_pod_s() {
        let replaced = |lifetime, shares_ipc| {
            let mount = json!({"source": "shm", "type": "tmpfs", "destination": "/dev/shm",
                "options": ["mode=1777", "size=65536k"]});
            replaced_in(lifetime, shares_ipc, mount)
        };
        let (source, mount) = replaced(Lifetime::SandboxApi, true);
        assert_eq!(source, Some(PathBuf::new()));
        assert_eq!(mount["source"], guest::POD_SHM);
        assert_eq!(mount["options"], json!(["rbind", "nosuid", "noexec", "nodev"]));
        for (lifetime, shares_ipc) in [(Lifetime::SandboxApi, false), (Lifetime::PauseContainer, true)] {
            let (source, mount) = replaced(lifetime, shares_ipc);
            assert_eq!((source, mount["type"].as_str()), (None, Some("tmpfs")));
        }
    }
}
