//! Specs in, prepared specs or refusals out.

mod table;

use super::*;
use crate::cgroup::limits::Change;
use crate::disk::GuestDisk;
use oci_spec::runtime::{Linux, LinuxNamespaceType as Namespace};
use serde_json::{Value, json};

/// For a container without disks.
const NO_DISKS: DisksByHostNumber = DisksByHostNumber::new();

/// A small valid spec, changed by `change`.
fn spec_json(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 7, "gid": 8}},
        "root": {"path": "/run/nacre/shared/a/rootfs"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
    });
    change(&mut spec);
    serde_json::to_vec(&spec).unwrap()
}

/// The small spec, changed by `change` and prepared.
fn prepared(change: impl FnOnce(&mut Value)) -> PreparedSpec {
    prepare("a", &spec_json(change), NO_DISKS).unwrap()
}

/// The error that the small spec, changed by `change`, is refused with.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    prepare("a", &spec_json(change), NO_DISKS)
        .unwrap_err()
        .to_string()
}

fn process(prepared: &PreparedSpec) -> &Process {
    prepared.spec.process().as_ref().unwrap()
}

fn linux(prepared: &PreparedSpec) -> &Linux {
    prepared.spec.linux().as_ref().unwrap()
}

#[test]
fn a_minimal_spec_is_completed() {
    let prepared = prepared(|_| {});
    assert_eq!(prepared.cgroup, Path::new("/a"));
    assert_eq!(prepared.uid, 7);
    assert!(prepared.find_home);
    assert!(!prepared.devices.is_empty());
    assert_eq!(process(&prepared).env().as_ref().unwrap(), &["HOME=/"]);
    assert_eq!(process(&prepared).no_new_privileges(), None);
    let linux = linux(&prepared);
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/a")));
    let namespaces = linux.namespaces().iter().flatten();
    let kinds: Vec<_> = namespaces.map(|namespace| namespace.typ()).collect();
    assert_eq!(kinds, [Namespace::Mount, Namespace::Pid, Namespace::Cgroup]);
}

#[test]
fn given_values_are_kept() {
    let prepared = prepared(|spec| {
        spec["linux"]["cgroupsPath"] = "/pod/a".into();
        spec["linux"]["namespaces"] = json!([{"type": "cgroup"}, {"type": "mount"}]);
        spec["process"]["noNewPrivileges"] = true.into();
        spec["process"]["env"] = json!(["HOME=", "HOME=/x"]);
    });
    assert_eq!(prepared.cgroup, Path::new("/pod/a"));
    assert!(!prepared.find_home);
    assert_eq!(
        process(&prepared).env().as_deref(),
        Some(&["HOME=/x".to_owned()][..])
    );
    assert_eq!(process(&prepared).no_new_privileges(), Some(true));
    assert_eq!(linux(&prepared).namespaces().as_ref().map(Vec::len), Some(2));
}

#[test]
fn names_of_a_shared_uts_namespace_are_the_agents_work() {
    let listed = json!([{"type": "mount"}]);
    let shared = prepared(|spec| {
        spec["linux"]["namespaces"] = listed;
        spec["hostname"] = "h".into();
    });
    assert_eq!(shared.uts_names.host.as_deref(), Some("h"));
    assert_eq!(shared.spec.hostname(), &None, "the agent sets it");
}

#[test]
fn the_owner_of_streams_is_mapped() {
    let prepared = prepared(|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "user"}, {"type": "network"}]);
        spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        spec["process"]["terminal"] = true.into();
    });
    assert_eq!(prepared.uid, 1007);
}

#[test]
fn refusals_name_the_field() {
    let remove = |key: &'static str| {
        move |spec: &mut Value| {
            spec.as_object_mut().unwrap().remove(key);
        }
    };
    let device = json!([{"type": "c", "path": "/etc/passwd", "major": 1, "minor": 3}]);
    for (text, want) in [
        (
            refusal(|spec| spec["process"]["args"] = json!([])),
            "process.args: ",
        ),
        (
            refusal(|spec| spec["process"]["cwd"] = "tmp".into()),
            "process.cwd: ",
        ),
        (refusal(remove("process")), "process: "),
        (refusal(remove("linux")), "linux: is missing"),
        (
            refusal(|spec| spec["root"]["path"] = "rootfs".into()),
            "root.path: ",
        ),
        (
            refusal(|spec| spec["linux"]["devices"] = device),
            "linux.devices[0].path: ",
        ),
        (
            prepare("a", b"{", NO_DISKS).unwrap_err().to_string(),
            "config.json: ",
        ),
    ] {
        assert!(text.starts_with(&format!("spec: {want}")), "{text}");
    }
    for hook in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        let text = refusal(|spec| spec["hooks"][hook] = json!([{"path": "/bin/true"}]));
        assert!(text.contains(&format!("hooks.{hook}")), "{text}");
    }
    for path in ["/proc/1/ns/uts", "container", "/"] {
        let namespaces = json!([{"type": "uts", "path": path}]);
        let text = refusal(|spec| spec["linux"]["namespaces"] = namespaces);
        assert!(text.contains("linux.namespaces: "), "{path}: {text}");
    }
    for path in ["relative", "/", "/a/../b", "system.slice:x:y"] {
        let text = refusal(|spec| spec["linux"]["cgroupsPath"] = path.into());
        assert!(text.contains("linux.cgroupsPath: "), "{path}: {text}");
    }
}

#[test]
fn ignored_fields_are_reported() {
    let prepared = prepared(|spec| spec["process"]["apparmorProfile"] = "x".into());
    assert_eq!(prepared.ignored.len(), 1);
    assert!(prepared.ignored[0].starts_with("process.apparmorProfile: "));
    let (_, ignored) = parse_process(br#"{"args": ["a"], "cwd": "/", "x": 1}"#).unwrap();
    assert_eq!(ignored, ["process.x: not in the OCI specification"]);
    let throttle = br#"{"blockIO": {"throttleReadBpsDevice": [{"major": 7, "minor": 3, "rate": 9}]}}"#;
    let disk = GuestDisk {
        node: "/dev/vdb".into(),
        major: 254,
        minor: 16,
    };
    let (limits, _) = parse_update(throttle, &DisksByHostNumber::from([((7, 3), disk)])).unwrap();
    assert_eq!(
        limits.first().unwrap().change,
        Change::Set("254:16 rbps=9".to_owned())
    );
    let (limits, ignored) = parse_update(
        br#"{"devices": [{"allow": true}], "pids": {"limit": 5}}"#,
        &NO_DISKS,
    )
    .unwrap();
    assert_eq!(limits.len(), 1);
    assert!(ignored[0].starts_with("linux.resources.devices: "), "{ignored:?}");
}

#[test]
fn limits_are_taken_out_of_the_spec() {
    let resources = json!({"pids": {"limit": 5}, "memory": {"limit": 7}});
    let prepared = prepared(|spec| spec["linux"]["resources"] = resources);
    assert!(linux(&prepared).resources().is_none());
    let pids = prepared.limits.iter().find(|setting| setting.file == "pids.max");
    assert_eq!(pids.unwrap().change, limits::Change::Set("5".to_owned()));
    let text = refusal(|spec| spec["linux"]["resources"] = json!({"pids": {"limit": -5}}));
    assert!(text.contains("linux.resources.pids.limit: "), "{text}");
}

#[test]
fn missing_capability_sets_are_empty() {
    let lengths = |prepared: &PreparedSpec| {
        let sets = process(prepared).capabilities().clone().unwrap();
        [
            sets.bounding(),
            sets.effective(),
            sets.inheritable(),
            sets.permitted(),
            sets.ambient(),
        ]
        .map(|set| set.as_ref().unwrap().len())
    };
    assert_eq!(lengths(&prepared(|_| {})), [0; 5]);
    let given = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"]});
    let prepared = prepared(|spec| spec["process"]["capabilities"] = given);
    assert_eq!(lengths(&prepared), [2, 0, 0, 1, 0]);
}

#[test]
fn namespaces_of_other_containers_are_those_of_their_init() {
    let prepared = || {
        prepared(|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "uts", "path": "container:b"}, {"type": "ipc", "path": ""},
                {"type": "network", "path": "container:b"}, {"type": "mount"}]);
            spec["hostname"] = "h".into();
        })
    };
    let mut joined = prepared();
    assert_eq!(joined.uts_names.host.as_deref(), Some("h"));
    resolve_namespaces(&mut joined.spec, |id| {
        assert_eq!(id, Some("b"));
        Ok("/proc/77/ns".into())
    })
    .unwrap();
    let paths: Vec<_> = linux(&joined)
        .namespaces()
        .iter()
        .flatten()
        .map(|namespace| {
            namespace
                .path()
                .as_ref()
                .map_or("", |path| path.to_str().unwrap())
        })
        .collect();
    assert_eq!(paths, ["/proc/77/ns/uts", "", "/proc/77/ns/net", "", ""]);
    let unknown = |id: Option<&str>| {
        let id = id.unwrap_or_default().to_owned();
        Err(Error::ContainerNotFound { id })
    };
    let error = resolve_namespaces(&mut prepared().spec, unknown).unwrap_err();
    assert!(error.to_string().contains("\"b\" not found"), "{error}");
}

#[test]
fn a_variable_has_its_last_value_where_its_name_was_first() {
    let prepared = prepared(|spec| {
        spec["process"]["env"] = json!(["A=1", "HOME=", "B=2", "A=3=4", "B=", "AB=5"]);
    });
    assert!(prepared.find_home);
    let environment = process(&prepared).env().clone().unwrap();
    assert_eq!(environment, ["A=3=4", "HOME=/", "B=", "AB=5"]);
}
