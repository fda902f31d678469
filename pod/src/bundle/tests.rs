//! Plans of whole specs.

use std::sync::LazyLock;

use super::*;
use crate::pod_spec::PodSpec;
use nacre_protocol::spec;

const NAMESPACES: &str =
    r#"[{"type":"mount"},{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"}]"#;

fn spec(rest: &str) -> String {
    format!(
        r#"{{"ociVersion":"1.0.2","process":{{"args":["sh"],"cwd":"/"}},"linux":{{"namespaces":{NAMESPACES},
        "cgroupsPath":"/default/a"}},"root":{{"path":"rootfs"}}{rest}}}"#
    )
}

fn planned(text: &str, rootfs: Vec<Mount>) -> Result<Plan, Refused> {
    plan(
        "a",
        Path::new("/bundle"),
        spec::check(text.as_bytes())?,
        rootfs,
        pod("s"),
    )
}

fn pod(sandbox: &str) -> Pod<'_> {
    static SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
    Pod {
        pid: 5,
        sandbox,
        spec: &SPEC,
        own_pids: &[],
        shares_pids: false,
        writable_layer: None,
        is_same: |a, b| a == b,
    }
}

fn guest_spec(plan: &Plan) -> Value {
    plan.guest_spec.clone()
}

#[test]
fn the_guest_s_spec_has_no_path_of_the_host() {
    let plan = planned(&spec(""), Vec::new()).unwrap();
    let guest = guest_spec(&plan);
    assert_eq!(guest["root"]["path"], "/run/nacre/shared/a/rootfs");
    assert_eq!(guest["linux"]["cgroupsPath"], "/containers/a");
    let kinds: Vec<_> = guest["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| &namespace["type"])
        .collect();
    assert_eq!(kinds, ["mount", "pid", "network", "ipc", "uts"]);
    assert_eq!(guest["process"]["args"][0], "sh");
}

#[test]
fn the_guest_s_spec_passes_the_agent_s_check_unchanged() {
    for rest in [
        "",
        r#","mounts":[{"destination":"/proc","type":"proc","source":"proc"}]"#,
    ] {
        let guest = guest_spec(&planned(&spec(rest), Vec::new()).unwrap());
        let checked = spec::check(guest.to_string().as_bytes()).unwrap();
        assert_eq!(checked.value(), &guest);
    }
}

#[test]
fn the_root_is_containerd_s_mounts_or_the_spec_s_directory() {
    assert_eq!(
        planned(&spec(""), Vec::new()).unwrap().rootfs,
        Rootfs::Directory("/bundle/rootfs".into())
    );
    let absolute = spec("").replace(r#""rootfs""#, r#""/srv/root""#);
    assert_eq!(
        planned(&absolute, Vec::new()).unwrap().rootfs,
        Rootfs::Directory("/srv/root".into())
    );
    let mount = Mount {
        kind: "bind".into(),
        source: "/s".into(),
        target: String::new(),
        options: vec!["rbind".into()],
    };
    assert_eq!(
        planned(&absolute, vec![mount.clone()]).unwrap().rootfs,
        Rootfs::Mounts(vec![mount])
    );
}

#[test]
fn binds_come_from_the_host_and_other_mounts_are_made_in_the_guest() {
    let text = spec(
        r#","mounts":[{"destination":"/proc","type":"proc","source":"proc"},
        {"destination":"/d","type":"bind","source":"/host/d","options":["rbind","ro"]},
        {"destination":"/e","source":"e","options":["bind"]},
        {"destination":"/f","source":"/sys/fs","options":["bind"]}]"#,
    );
    let plan = planned(&text, Vec::new()).unwrap();
    let mount = |index, source: &str, extent| HostMount {
        index,
        source: source.into(),
        extent,
        id_map: None,
        is_of_kernel: source.starts_with("/sys"),
        may_be_mirrored: false,
        volume: None,
    };
    let whole = Extent {
        recursive: true,
        read_only: true,
    };
    assert_eq!(
        plan.mounts,
        [
            mount(1, "/host/d", whole),
            mount(2, "/bundle/e", Extent::default()),
            mount(3, "/sys/fs", Extent::default()),
        ]
    );
    let guest = guest_spec(&plan);
    assert_eq!(guest["mounts"][0]["source"], "proc");
    assert_eq!(guest["mounts"][1]["source"], "/run/nacre/shared/a/mounts/1");
    assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]));
    assert_eq!(guest["mounts"][2]["type"], "bind");
    assert_eq!(guest["mounts"][3]["source"], "/run/nacre/shared/a/kernel/3");
}

#[test]
fn namespaces_are_new_or_the_pod_s() {
    let text = spec("").replace(r#"{"type":"network"},"#, "");
    let error = planned(&text, Vec::new()).unwrap_err().to_string();
    assert!(
        error.contains("linux.namespaces") && error.contains("network"),
        "{error}"
    );
    let more = r#"{"type":"uts","path":"/proc/5/ns/uts"},{"type":"user"},{"type":"time"},{"type":"cgroup"}"#;
    let text = spec("").replace(r#"{"type":"uts"}"#, more);
    let plan = planned(&text, Vec::new()).unwrap();
    let namespaces = &guest_spec(&plan)["linux"]["namespaces"];
    // The pod's UTS namespace is the guest's.
    assert_eq!(namespaces.as_array().unwrap().len(), 7);
}

#[test]
fn cpus_are_the_vm_s_and_the_pod_s_first_container_s() {
    let cpus = |cpus: &str| {
        spec("").replace(
            r#""cgroupsPath""#,
            &format!(r#""resources":{{"cpu":{{"cpus":"{cpus}","shares":5}}}},"cgroupsPath""#),
        )
    };
    let planned = |id: &str, text: &str| {
        plan(
            id,
            Path::new("/bundle"),
            spec::check(text.as_bytes())?,
            Vec::new(),
            pod("s"),
        )
    };
    let first = planned("s", &cpus("0-1")).unwrap();
    assert_eq!(first.ignored, []);
    assert_eq!(
        guest_spec(&first)["linux"]["resources"]["cpu"],
        json!({"shares": 5})
    );
    let second = planned("a", &cpus("0-1")).unwrap();
    assert_eq!(second.ignored[0].path, "linux.resources.cpu.cpus");
    for wrong in ["7-5", "5000", "x"] {
        let error = planned("s", &cpus(wrong)).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.cpu.cpus: "), "{error}");
    }
}

#[test]
fn ignored_fields_are_reported_and_removed() {
    let text =
        spec(r#","future":1,"mounts":[{"destination":"/a","type":"tmpfs","options":["silent","size=1m"]}]"#)
            .replace(
                r#""cwd""#,
                r#""apparmorProfile":"cri-containerd.apparmor.d","cwd""#,
            );
    let plan = planned(&text, Vec::new()).unwrap();
    let paths: Vec<_> = plan.ignored.iter().map(|finding| finding.path.as_str()).collect();
    assert_eq!(
        paths,
        ["future", "process.apparmorProfile", "mounts[0].options[0]"]
    );
    let guest = guest_spec(&plan);
    assert!(guest.get("future").is_none() && guest["process"].get("apparmorProfile").is_none());
    assert_eq!(guest["mounts"][0]["options"], json!(["size=1m"]));
}

#[test]
fn id_maps_of_mounts_are_the_host_s() {
    let ids = r#"[{"containerID":0,"hostID":100000,"size":65536}]"#;
    let text = spec(&format!(
        r#","mounts":[{{"destination":"/d","type":"bind","source":"/s","options":["rbind","ridmap"],
        "uidMappings":{ids},"gidMappings":{ids}}}]"#
    ));
    let plan = planned(&text, Vec::new()).unwrap();
    let (map, recursive) = plan.mounts[0].id_map.clone().unwrap();
    assert_eq!(
        (map.uids[0].host, map.gids[0].size, recursive),
        (100_000, 65536, true)
    );
    let guest = &guest_spec(&plan)["mounts"][0];
    assert_eq!(guest["options"], json!(["rbind"]));
    assert!(guest["uidMappings"].is_null() && guest["gidMappings"].is_null());
}

#[test]
fn mounts_that_can_t_be_made_are_refused_by_path() {
    for (mount, path) in [
        (
            r#"{"destination":"/a","type":"nfs","source":"h:/x"}"#,
            "mounts[0].type",
        ),
        (r#"{"destination":"/a","type":"bind"}"#, "mounts[0].source"),
        (
            r#"{"destination":"/x/../proc/","type":"tmpfs"}"#,
            "mounts[0].destination",
        ),
        (
            r#"{"destination":"/a","type":"bind","source":"/x","options":["rbind","idmap"]}"#,
            "mounts[0].options",
        ),
    ] {
        let error = planned(&spec(&format!(r#","mounts":[{mount}]"#)), Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains(path), "{error}");
    }
}

#[test]
fn a_spec_without_a_root_or_of_the_wrong_type_is_refused() {
    let error = planned(&spec("").replace(r#""path":"rootfs""#, ""), Vec::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("root.path"), "{error}");
    assert!(
        planned("{", Vec::new())
            .unwrap_err()
            .to_string()
            .contains("config.json")
    );
    planned("[]", Vec::new()).unwrap_err();
    planned(r#"{"linux":5,"root":"x","mounts":3}"#, Vec::new()).unwrap_err();
}

#[test]
fn a_spec_that_is_too_large_with_the_guest_s_paths_is_refused() {
    let mount = r#"{"destination":"/d","type":"bind","source":"/s","options":["bind"]}"#;
    let mounts = vec![mount; spec::MAX_MOUNTS].join(",");
    let text = |padding: usize| {
        spec(&format!(
            r#","hostname":"{}","mounts":[{mounts}]"#,
            "x".repeat(padding)
        ))
    };
    let padding = MAX_SPEC - text(0).len();
    let error = planned(&text(padding), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("for the guest"), "{error}");
}

#[test]
fn the_oom_score_adj_is_in_the_plan() {
    let with = spec("").replace(r#""cwd""#, r#""oomScoreAdj":-997,"cwd""#);
    assert_eq!(planned(&with, Vec::new()).unwrap().oom_score_adj, Some(-997));
    assert_eq!(planned(&spec(""), Vec::new()).unwrap().oom_score_adj, None);
}

#[test]
fn annotations_of_a_pod_that_are_invalid_are_refused_by_name() {
    for annotation in [
        r#""io.kubernetes.cri.sandbox-memory":"1Gi""#,
        r#""io.kubernetes.cri.container-type":"pod""#,
    ] {
        let text = spec(&format!(r#","annotations":{{{annotation}}}"#));
        let error = planned(&text, Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with("annotations[\"io.kubernetes.cri."), "{error}");
    }
}

#[test]
fn a_volume_that_changes_may_be_mirrored_if_it_is_read_only() {
    let source = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/c";
    let planned_with = |mount: &str, rest: &str| {
        let mount = format!(r#"{{"destination":"/c","type":"bind","source":"{source}",{mount}}}"#);
        planned(&spec(&format!(r#","mounts":[{mount}]{rest}"#)), Vec::new()).unwrap()
    };
    let may_be = |plan: &Plan| plan.mounts[0].may_be_mirrored;
    let mut plan = planned_with(r#""options":["rbind","rprivate","ro"]"#, "");
    assert!(may_be(&plan));
    assert!(may_be(&planned_with(r#""options":["rbind","rro"]"#, "")));
    assert!(!may_be(&planned_with(r#""options":["rbind","rw"]"#, "")));
    assert!(!may_be(&planned_with(r#""options":["rbind"]"#, "")));
    let map = r#"[{"containerID":0,"hostID":1000,"size":1}]"#;
    let mapped = format!(r#""options":["rbind","ro","idmap"],"uidMappings":{map},"gidMappings":{map}"#);
    assert!(!may_be(&planned_with(&mapped, "")));

    plan.use_mirror(0, 7);
    assert_eq!(plan.mounts, []);
    let mount = &guest_spec(&plan)["mounts"][0];
    assert_eq!(mount["source"], "/run/nacre/mirror/7/files");
    assert_eq!(
        (&mount["type"], &mount["options"]),
        (&json!("bind"), &json!(["rbind", "rprivate", "ro"]))
    );
}

#[test]
fn a_container_with_users_of_its_own_has_no_mirror() {
    let ids = r#"[{"containerID":0,"hostID":1000,"size":10}]"#;
    let text = spec(
        r#","mounts":[{"destination":"/c","type":"bind","options":["rbind","ro"],
        "source":"/k/volumes/kubernetes.io~secret/s"}]"#,
    );
    let text = text.replace(r#"{"type":"mount"}"#, r#"{"type":"mount"},{"type":"user"}"#);
    let text = text.replace(
        r#""linux":{"#,
        &format!(r#""linux":{{"uidMappings":{ids},"gidMappings":{ids},"#),
    );
    assert!(!planned(&text, Vec::new()).unwrap().mounts[0].may_be_mirrored);
}
