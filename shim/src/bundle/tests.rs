//! Plans of whole specs.

use super::*;

const NAMESPACES: &str =
    r#"[{"type":"mount"},{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"}]"#;

fn spec(rest: &str) -> String {
    format!(
        r#"{{"ociVersion":"1.0.2","process":{{"args":["sh"],"cwd":"/"}},"linux":{{"namespaces":{NAMESPACES},
        "cgroupsPath":"/default/a"}},"root":{{"path":"rootfs"}}{rest}}}"#
    )
}

fn planned(text: &str, rootfs: Vec<Mount>) -> Result<Plan, Error> {
    plan("a", Path::new("/bundle"), text.as_bytes(), rootfs)
}

fn guest_spec(plan: &Plan) -> Value {
    serde_json::from_slice(&plan.guest_spec).unwrap()
}

#[test]
fn the_guest_s_spec_names_nothing_of_the_host() {
    let plan = planned(&spec(""), Vec::new()).unwrap();
    let guest = guest_spec(&plan);
    assert_eq!(guest["root"]["path"], "/run/nacre/shared/a/rootfs");
    assert_eq!(guest["linux"]["cgroupsPath"], "/a");
    let kinds: Vec<_> = guest["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["type"])
        .collect();
    assert_eq!(kinds, ["mount", "pid", "ipc", "uts"]);
    assert_eq!(guest["process"]["args"][0], "sh");
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
fn binds_come_from_the_host_and_the_rest_stays_in_the_guest() {
    let text = spec(
        r#","mounts":[{"destination":"/proc","type":"proc","source":"proc"},
        {"destination":"/d","type":"bind","source":"/host/d","options":["rbind","ro"]},
        {"destination":"/e","source":"e","options":["bind"]}]"#,
    );
    let plan = planned(&text, Vec::new()).unwrap();
    let mount = |index, source: &str, extent| HostMount {
        index,
        source: source.into(),
        extent,
    };
    let whole = Extent {
        recursive: true,
        read_only: true,
    };
    assert_eq!(
        plan.mounts,
        [
            mount(1, "/host/d", whole),
            mount(2, "/bundle/e", Extent::default())
        ]
    );
    let guest = guest_spec(&plan);
    assert_eq!(guest["mounts"][0]["source"], "proc");
    assert_eq!(guest["mounts"][1]["source"], "/run/nacre/shared/a/mounts/1");
    assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]));
    assert_eq!(guest["mounts"][2]["type"], "bind");
}

#[test]
fn the_host_s_namespaces_are_refused_by_kind() {
    let text = spec("").replace(r#"{"type":"network"},"#, "");
    let error = planned(&text, Vec::new()).unwrap_err().to_string();
    assert!(
        error.contains("linux.namespaces") && error.contains("network"),
        "{error}"
    );
    let user = spec("").replace(r#"{"type":"uts"}"#, r#"{"type":"uts"},{"type":"user"}"#);
    assert!(
        planned(&user, Vec::new())
            .unwrap_err()
            .to_string()
            .contains("linux.namespaces[5].type")
    );
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
fn a_spec_without_a_root_or_that_is_none_is_refused() {
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
    assert!(matches!(
        planned("[]", Vec::new()).unwrap_err(),
        Error::Refused(_)
    ));
    assert!(matches!(
        planned(r#"{"linux":5,"root":"x","mounts":3}"#, Vec::new()).unwrap_err(),
        Error::Refused(_)
    ));
}

#[test]
fn an_outline_needs_no_valid_spec() {
    assert_eq!(outline(b"{"), Outline::default());
    let text = br#"{"hostname":"h","linux":{"cgroupsPath":"/d/a","resources":{"memory":{"limit":5},"cpu":{"quota":1,"period":2}}}}"#;
    let want = Outline {
        cgroups_path: Some("/d/a".into()),
        memory_limit: Some(5),
        cpu_quota: Some(1),
        cpu_period: Some(2),
        hostname: Some("h".into()),
        is_pod: false,
    };
    assert_eq!(outline(text), want);
}
