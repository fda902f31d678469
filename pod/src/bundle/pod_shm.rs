//! Finds the pod's /dev/shm among a container's mounts. CRI has a tmpfs of the host for each pod and binds it to
//! /dev/shm of its containers. In the guest it is one tmpfs of the guest: memory that is mapped shared and
//! futexes in it need one kernel, and POSIX shared memory is nothing else.

use std::path::{Path, PathBuf};

use nacre_protocol::guest;
use serde_json::{Value, json};

use super::namespaces::Pod;
use super::normalized;
use crate::pod_spec::Lifetime;

/// Where containers have shared memory.
const DEV_SHM: &str = "/dev/shm";

/// If the mount is the pod's /dev/shm, makes it a bind mount of the guest's, and returns what it was bound to on
/// the host. That is a directory "shm" that belongs to the sandbox by its path, such as
/// /run/containerd/io.containerd.grpc.v1.cri/sandboxes/ID/shm. Any other directory, such as the host's own
/// /dev/shm, is shared with processes of the host.
pub fn replace(mount: &mut Value, pod: Pod<'_>) -> Option<PathBuf> {
    let source = PathBuf::from(mount["source"].as_str()?);
    let destination = Path::new(mount["destination"].as_str()?);
    let is_of_sandbox = source.file_name().is_some_and(|name| name == "shm")
        && source.components().any(|part| part.as_os_str() == pod.sandbox);
    if pod.spec.lifetime == Lifetime::Container
        || normalized(destination) != Path::new(DEV_SHM)
        || !is_of_sandbox
    {
        return None;
    }
    mount["source"] = json!(guest::POD_SHM);
    mount["type"] = json!("bind");
    Some(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_spec::PodSpec;

    fn replaced(source: &str, destination: &str, lifetime: Lifetime) -> (Option<PathBuf>, Value) {
        let spec = PodSpec {
            lifetime,
            ..PodSpec::default()
        };
        let pod = Pod {
            pid: 5,
            sandbox: "s",
            spec: &spec,
            is_same: |a, b| a == b,
        };
        let mut mount = json!({"source": source, "destination": destination, "options": ["rbind", "rw"]});
        (replace(&mut mount, pod), mount)
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
}
