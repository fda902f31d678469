//! A container's OCI spec as the shim sends it, checked and completed for the guest: a pure function from bytes to
//! [`Prepared`]. Called by container creation; never looks at the system.

use std::path::{Component, Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Process, Spec,
};

use crate::cgroup::limits;
use crate::devices;
use crate::error::Error;
use crate::terminal::Terminal;

/// A spec that can be run.
#[derive(Debug)]
pub struct Prepared {
    /// What libcontainer is to get.
    pub spec: Spec,
    /// The container's cgroup, absolute.
    pub cgroup: PathBuf,
    /// The device program of the cgroup; none where all is allowed.
    pub devices: Vec<u64>,
    /// The limits of its cgroup, which can all be said in files.
    pub resources: LinuxResources,
    /// Owner of the standard streams.
    pub uid: u32,
    /// The process's terminal, where it wants one.
    pub terminal: Option<Terminal>,
    /// The spec names no HOME: the one it has now stands for what the container's /etc/passwd says.
    pub find_home: bool,
    /// The container gets a network of its own, in which the loopback device is down.
    pub new_network: bool,
}

/// Whether `id` can be a directory's name and part of libcontainer's state.
pub fn check_id(id: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(Error::BadId {
            id: id.chars().take(128).collect(),
        });
    }
    Ok(())
}

/// Checks the spec of container `id` and fills in what the guest decides.
pub fn prepare(id: &str, json: &[u8]) -> Result<Prepared, Error> {
    let mut spec: Spec = serde_json::from_slice(json).map_err(|error| Error::BadSpec {
        field: "config.json",
        reason: error.to_string(),
    })?;
    check_process(spec.process().as_ref().ok_or_else(|| missing("process"))?)?;
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    if !root.path().is_absolute() {
        return Err(Error::BadSpec {
            field: "root.path",
            reason: "is not absolute".to_owned(),
        });
    }
    if spec.hooks().is_some() {
        return Err(Error::BadSpec {
            field: "hooks",
            reason: "hooks are not run in a guest".to_owned(),
        });
    }
    let uid = spec.process().as_ref().map_or(0, |process| process.user().uid());
    let terminal = spec.process().as_ref().and_then(Terminal::wanted);
    let mut process = spec.process().clone().ok_or_else(|| missing("process"))?;
    let find_home = complete_process(&mut process);
    spec.set_process(Some(process));

    let mut linux = spec.linux().clone().ok_or_else(|| missing("linux"))?;
    // libcontainer gets none of them: it drops some and mistakes others.
    let resources = linux.resources().clone().unwrap_or_default();
    linux.set_resources(None);
    let devices = devices::program(resources.devices().as_deref().unwrap_or_default())?;
    limits::settings(&resources)?;
    let cgroup = cgroup_path(id, linux.cgroups_path().as_deref())?;
    linux.set_cgroups_path(Some(cgroup.clone()));
    let (namespaces, new_network) = namespaces(&linux)?;
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    Ok(Prepared {
        spec,
        cgroup,
        devices,
        resources,
        uid,
        terminal,
        find_home,
        new_network,
    })
}

/// Fills in what the guest decides; whether HOME is a placeholder now.
pub fn complete_process(process: &mut Process) -> bool {
    if process.no_new_privileges() == Some(false) {
        // libcontainer takes "no" for a decision to load the seccomp filter late, when that is no longer allowed.
        process.set_no_new_privileges(None);
    }
    let mut environment = process.env().clone().unwrap_or_default();
    let home = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("HOME="));
    let find_home = home.is_none_or(str::is_empty);
    if find_home {
        // Else libcontainer would ask the C library, which may load code from the container.
        environment.push("HOME=/".to_owned());
    }
    process.set_env(Some(environment));
    find_home
}

/// The container's namespaces in the guest, and whether a network is among them.
///
/// The guest's network is the pod's: a container that is to have a new one gets that, which is as much its own, and
/// costs nothing to make. Only settings of a network need one that they can be applied to.
fn namespaces(linux: &Linux) -> Result<(Vec<LinuxNamespace>, bool), Error> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let is_new_network = |namespace: &LinuxNamespace| {
        namespace.typ() == LinuxNamespaceType::Network
            && namespace.path().as_ref().is_none_or(|p| p.as_os_str().is_empty())
    };
    let has_settings = linux.sysctl().as_ref().is_some_and(|settings| {
        settings
            .keys()
            .any(|key| key.starts_with("net.") || key.starts_with("net/"))
    });
    if !has_settings {
        namespaces.retain(|namespace| !is_new_network(namespace));
    }
    if !namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup)
    {
        // Without one, a container's cgroup mount would show the guest's whole tree.
        let cgroup = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Cgroup)
            .build();
        let bad = |error: OciSpecError| Error::BadSpec {
            field: "linux.namespaces",
            reason: error.to_string(),
        };
        namespaces.push(cgroup.map_err(bad)?);
    }
    let new_network = namespaces.iter().any(is_new_network);
    Ok((namespaces, new_network))
}

fn missing(field: &'static str) -> Error {
    Error::BadSpec {
        field,
        reason: "is missing".to_owned(),
    }
}

/// Checks what libcontainer and the kernel would not, or with worse words.
pub fn check_process(process: &Process) -> Result<(), Error> {
    if process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .is_none_or(String::is_empty)
    {
        return Err(Error::BadSpec {
            field: "process.args",
            reason: "names no command".to_owned(),
        });
    }
    if !process.cwd().is_absolute() {
        return Err(Error::BadSpec {
            field: "process.cwd",
            reason: format!("{} is not absolute", process.cwd().display()),
        });
    }
    Ok(())
}

fn cgroup_path(id: &str, wanted: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(path) = wanted.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("/").join(id));
    };
    let mut components = path.components();
    let plain = components.next() == Some(Component::RootDir)
        && components.next().is_some()
        && path
            .components()
            .skip(1)
            .all(|component| matches!(component, Component::Normal(_)));
    if !plain {
        let reason = format!("{} is no absolute path below the root", path.display());
        return Err(Error::BadSpec {
            field: "linux.cgroupsPath",
            reason,
        });
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["true"], "cwd": "/", "user": {"uid": 7, "gid": 8}},
            "root": {"path": "/run/nacre/shared/a/rootfs"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}]}
        });
        change(&mut spec);
        serde_json::to_vec(&spec).unwrap()
    }

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
        prepare("a", &json(change)).unwrap_err().to_string()
    }

    #[test]
    fn fills_in_what_the_guest_decides() {
        let prepared = prepare(
            "a",
            &json(|spec| spec["process"]["noNewPrivileges"] = false.into()),
        )
        .unwrap();
        assert_eq!(prepared.cgroup, Path::new("/a"));
        assert_eq!(prepared.uid, 7);
        assert!(!prepared.new_network, "it has the guest's");
        assert!(prepared.find_home);
        assert_eq!(
            prepared.spec.process().as_ref().unwrap().env().as_deref(),
            Some(&["HOME=/".to_owned()][..])
        );
        let linux = prepared.spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/a")));
        let kinds: Vec<_> = linux
            .namespaces()
            .as_ref()
            .unwrap()
            .iter()
            .map(|n| n.typ())
            .collect();
        assert_eq!(
            kinds,
            [
                LinuxNamespaceType::Mount,
                LinuxNamespaceType::Pid,
                LinuxNamespaceType::Cgroup
            ]
        );
        assert_eq!(
            prepared.spec.process().as_ref().unwrap().no_new_privileges(),
            None
        );
        assert!(!prepared.devices.is_empty());
    }

    #[test]
    fn keeps_what_the_shim_decides() {
        let prepared = prepare(
            "a",
            &json(|spec| {
                spec["linux"]["cgroupsPath"] = "/pod/a".into();
                spec["linux"]["namespaces"] = serde_json::json!([{"type": "cgroup"}, {"type": "mount"}]);
                spec["process"]["noNewPrivileges"] = true.into();
                spec["process"]["env"] = serde_json::json!(["HOME=", "HOME=/x"]);
            }),
        )
        .unwrap();
        assert_eq!(prepared.cgroup, Path::new("/pod/a"));
        assert!(!prepared.new_network);
        assert!(!prepared.find_home);
        assert_eq!(
            prepared
                .spec
                .process()
                .as_ref()
                .unwrap()
                .env()
                .as_ref()
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            prepared
                .spec
                .linux()
                .as_ref()
                .unwrap()
                .namespaces()
                .as_ref()
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            prepared.spec.process().as_ref().unwrap().no_new_privileges(),
            Some(true)
        );
    }

    #[test]
    fn a_network_with_settings_is_the_containers_own() {
        let sysctl = serde_json::json!({"kernel.msgmax": "1", "net.ipv4.ip_forward": "1"});
        assert!(
            prepare("a", &json(|spec| spec["linux"]["sysctl"] = sysctl))
                .unwrap()
                .new_network
        );
        let other = serde_json::json!({"kernel.msgmax": "1"});
        assert!(
            !prepare("a", &json(|spec| spec["linux"]["sysctl"] = other))
                .unwrap()
                .new_network
        );
    }

    #[test]
    fn refuses_by_name() {
        assert!(refusal(|spec| spec["process"]["args"] = serde_json::json!([])).contains("process.args"));
        assert!(refusal(|spec| spec["process"]["cwd"] = "tmp".into()).contains("process.cwd"));
        assert!(
            refusal(|spec| drop(spec.as_object_mut().unwrap().remove("process")))
                .contains("process: is missing")
        );
        assert!(
            refusal(|spec| drop(spec.as_object_mut().unwrap().remove("linux"))).contains("linux: is missing")
        );
        assert!(refusal(|spec| spec["root"]["path"] = "rootfs".into()).contains("root.path"));
        assert!(refusal(|spec| spec["hooks"] = serde_json::json!({})).contains("hooks"));
        for path in ["relative", "/", "/a/../b", "system.slice:x:y"] {
            assert!(
                refusal(|spec| spec["linux"]["cgroupsPath"] = path.into()).contains("linux.cgroupsPath"),
                "{path}"
            );
        }
        assert!(
            prepare("a", b"{")
                .unwrap_err()
                .to_string()
                .contains("config.json")
        );
    }

    #[test]
    fn limits_are_the_agents_to_write() {
        let resources = serde_json::json!({"pids": {"limit": 5}, "memory": {"limit": 7}});
        let prepared = prepare("a", &json(|spec| spec["linux"]["resources"] = resources)).unwrap();
        assert!(prepared.spec.linux().as_ref().unwrap().resources().is_none());
        assert_eq!(prepared.resources.pids().as_ref().unwrap().limit(), 5);
        let wrong = serde_json::json!({"pids": {"limit": -5}});
        assert!(
            refusal(|spec| spec["linux"]["resources"] = wrong).contains("linux.resources.pids.limit: -5")
        );
    }

    #[test]
    fn ids() {
        for id in ["a", "e2e-run-1-2", "A_b+c.d"] {
            check_id(id).unwrap();
        }
        for id in ["", ".", "..", ".a", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(matches!(check_id(id), Err(Error::BadId { .. })), "{id:?}");
        }
    }
}
