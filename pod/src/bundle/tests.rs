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
    plan("a", Path::new("/bundle"), text.as_bytes(), rootfs, None)
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
    assert_eq!(kinds, ["mount", "pid", "network", "ipc", "uts"]);
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
fn namespaces_are_the_guest_s_own_or_the_pod_s() {
    let text = spec("").replace(r#"{"type":"network"},"#, "");
    let error = planned(&text, Vec::new()).unwrap_err().to_string();
    assert!(
        error.contains("linux.namespaces") && error.contains("network"),
        "{error}"
    );
    let more = r#"{"type":"uts","path":"/proc/5/ns/uts"},{"type":"user"},{"type":"time"},{"type":"cgroup"}"#;
    let text = spec("").replace(r#"{"type":"uts"}"#, more);
    let pod = Some(Pod { pid: 5, sandbox: "s" });
    let plan = plan("a", Path::new("/bundle"), text.as_bytes(), Vec::new(), pod).unwrap();
    let namespaces = &guest_spec(&plan)["linux"]["namespaces"];
    assert_eq!(namespaces[4], json!({"type": "uts", "path": "container:s"}));
    assert_eq!(namespaces.as_array().unwrap().len(), 8);
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
        let pod = Some(Pod { pid: 5, sandbox: "s" });
        plan(id, Path::new("/bundle"), text.as_bytes(), Vec::new(), pod)
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
fn what_is_ignored_is_named_and_does_not_reach_the_guest() {
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
fn an_exec_s_process_is_checked_by_the_same_table() {
    let (process, ignored) =
        process(br#"{"args":["a"],"cwd":"/","selinuxLabel":"x","terminal":true}"#).unwrap();
    assert_eq!(
        Value::Object(process),
        json!({"args": ["a"], "cwd": "/", "terminal": true})
    );
    assert_eq!(ignored[0].path, "process.selinuxLabel");
    let error = super::process(br#"{"args":["a"],"cwd":"x"}"#)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "process.cwd: expected an absolute path, got \"x\"");
    let error = super::process(b"{\"args\":[\"a\xff\"],\"cwd\":\"/\"}")
        .unwrap_err()
        .to_string();
    assert_eq!(error, "process.args[0]: is no UTF-8");
}

#[test]
fn an_update_is_checked_by_the_same_table() {
    let all =
        br#"{"memory":{"limit":5},"cpu":{"cpus":"0","shares":2},"devices":[{"allow":false,"access":"rwm"}]}"#;
    let (resources, ignored) = update(all).unwrap();
    let resources: Value = serde_json::from_slice(&resources).unwrap();
    assert_eq!(resources, json!({"memory": {"limit": 5}, "cpu": {"shares": 2}}));
    let paths: Vec<_> = ignored.iter().map(|finding| finding.path.as_str()).collect();
    assert_eq!(paths, ["linux.resources.devices", "linux.resources.cpu.cpus"]);
    let error = update(br#"{"cpu":{"mems":"0"}}"#).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.cpu.mems: "), "{error}");
}

#[test]
fn an_exec_s_process_that_is_none_says_so() {
    for bad in [&b""[..], b"[]", b"null", b"5", b"{", b"\xff", b"\"a\""] {
        let error = process(bad).unwrap_err().to_string();
        assert!(error.starts_with("process"), "{error}");
    }
}

#[test]
fn bad_input_is_an_error_with_its_path() {
    let many = |element: &str, count: usize| format!("[{}]", vec![element; count].join(","));
    let tables = [
        (
            spec(r#","mounts":[{"destination":"","type":"tmpfs"}]"#),
            "mounts[0].destination: ",
        ),
        (
            spec(&format!(
                r#","mounts":{}"#,
                many(r#"{"destination":"/x","type":"tmpfs"}"#, 10_000)
            )),
            "mounts: expected at most 1024 elements, got 10000",
        ),
        (
            spec("").replace(r#"["sh"]"#, &many(r#""a""#, 100_000)),
            "process.args: expected at most 65536 elements, got 100000",
        ),
        (
            spec("").replace(r#"["sh"]"#, "[7]"),
            "process.args[0]: expected a string, got 7",
        ),
        (
            spec("").replace(r#""args":["sh"],"#, ""),
            "process.args: the first element must be a command",
        ),
        (
            spec("").replace(r#""process":"#, r#""other":"#),
            "process: is missing",
        ),
        (
            spec("").replace(
                r#""cwd":"/""#,
                r#""cwd":"/","rlimits":[{"type":"RLIMIT_X","hard":1,"soft":1}]"#,
            ),
            "process.rlimits[0].type: ",
        ),
        (
            spec("").replace(r#""cwd":"/""#, r#""cwd":"/","oomScoreAdj":-1001"#),
            "process.oomScoreAdj: expected an integer in -1000..=1000, got -1001",
        ),
        (
            spec("").replace(
                r#""cgroupsPath""#,
                r#""resources":{"pids":{"limit":-2}},"cgroupsPath""#,
            ),
            "linux.resources.pids.limit: expected an integer in -1..=",
        ),
        (
            spec("").replace(
                r#""cgroupsPath""#,
                r#""resources":{"memory":{"limit":"5"}},"cgroupsPath""#,
            ),
            "linux.resources.memory.limit: expected an integer in -1..=",
        ),
        (
            spec(&format!(r#","deep":{}{}"#, "[".repeat(500), "]".repeat(500))),
            "config.json: recursion",
        ),
        (
            spec(&format!(
                r#","annotations":{{"a":"{}"}}"#,
                "x".repeat(spec::MAX_SPEC)
            )),
            "config.json: 31",
        ),
    ];
    for (text, want) in tables {
        let error = planned(&text, Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with(want), "{want}: {error}");
        assert!(error.len() < 20_000);
    }
    let mut bytes = spec("").replace(r#"["sh"]"#, r#"["sh","?"]"#).into_bytes();
    let at = bytes.iter().position(|byte| *byte == b'?').unwrap();
    bytes[at] = 0xff;
    let error = plan("a", Path::new("/bundle"), &bytes, Vec::new(), None)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "process.args[1]: is no UTF-8");
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
    assert_eq!(vm_hints(b"{"), VmHints::default());
    let text = br#"{"hostname":"h","linux":{"cgroupsPath":"/d/a","resources":{"memory":{"limit":5},"cpu":{"quota":1,"period":2,"cpus":"0,2"}}}}"#;
    let want = VmHints {
        cgroups_path: Some("/d/a".into()),
        memory_limit: Some(5),
        cpu_quota: Some(1),
        cpu_period: Some(2),
        cpus: vec![0, 2],
        hostname: Some("h".into()),
        is_pod: false,
    };
    assert_eq!(vm_hints(text), want);
}
