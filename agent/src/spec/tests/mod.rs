//! Specs in, what the guest makes of them out.

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
            oci_spec::runtime::LinuxNamespaceType::Mount,
            oci_spec::runtime::LinuxNamespaceType::Pid,
            oci_spec::runtime::LinuxNamespaceType::Cgroup
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
        refusal(|spec| drop(spec.as_object_mut().unwrap().remove("process"))).contains("process: is missing")
    );
    assert!(
        refusal(|spec| drop(spec.as_object_mut().unwrap().remove("linux"))).contains("linux: is missing")
    );
    assert!(refusal(|spec| spec["root"]["path"] = "rootfs".into()).contains("root.path"));
    for hook in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        let text = refusal(|spec| spec["hooks"][hook] = serde_json::json!([{"path": "/bin/true"}]));
        assert!(text.contains(&format!("hooks.{hook}")), "{text}");
    }
    let device = serde_json::json!([{"type": "c", "path": "/etc/passwd", "major": 1, "minor": 3}]);
    assert!(refusal(|spec| spec["linux"]["devices"] = device).contains("linux.devices: \"/etc/passwd\""));
    for path in ["/proc/1/ns/uts", "container", "/"] {
        let namespaces = serde_json::json!([{"type": "uts", "path": path}]);
        assert!(
            refusal(|spec| spec["linux"]["namespaces"] = namespaces).contains("linux.namespaces: "),
            "{path}"
        );
    }
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
    let pids = prepared.limits.iter().find(|setting| setting.file == "pids.max");
    assert_eq!(pids.unwrap().change, limits::Change::Set("5".to_owned()));
    let wrong = serde_json::json!({"pids": {"limit": -5}});
    assert!(refusal(|spec| spec["linux"]["resources"] = wrong).contains("linux.resources.pids.limit: -5"));
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

#[test]
fn capabilities_that_are_not_named_are_none() {
    let sets = |json: &[u8]| {
        let prepared = prepare("a", json).unwrap();
        let all = prepared
            .spec
            .process()
            .as_ref()
            .unwrap()
            .capabilities()
            .clone()
            .unwrap();
        [
            all.bounding(),
            all.effective(),
            all.inheritable(),
            all.permitted(),
            all.ambient(),
        ]
        .map(|set| set.as_ref().unwrap().len())
    };
    assert_eq!(sets(&json(|_| {})), [0; 5]);
    let some = serde_json::json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"]});
    assert_eq!(
        sets(&json(|spec| spec["process"]["capabilities"] = some)),
        [2, 0, 0, 1, 0]
    );
}

#[test]
fn namespaces_of_other_containers_are_their_first_processes() {
    let namespaces = serde_json::json!([{"type": "uts", "path": "container:b"}, {"type": "ipc", "path": ""},
        {"type": "network", "path": "container:b"}, {"type": "mount"}]);
    let text = json(|spec| {
        spec["linux"]["namespaces"] = namespaces;
        spec["hostname"] = "h".into();
    });
    let mut prepared = prepare("a", &text).unwrap();
    assert_eq!(prepared.uts_names.host.as_deref(), Some("h"));
    assert!(!prepared.new_network);
    resolve_namespaces(&mut prepared.spec, |id| {
        assert_eq!(id, "b");
        Ok(rustix::process::Pid::from_raw(77).unwrap())
    })
    .unwrap();
    let paths: Vec<_> = prepared
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref())
        .unwrap()
        .iter()
        .map(|one| one.path().as_ref().map_or("", |path| path.to_str().unwrap()))
        .collect();
    assert_eq!(paths, ["/proc/77/ns/uts", "", "/proc/77/ns/net", "", ""]);
    let unknown = |id: &str| Err(Error::ContainerNotFound { id: id.to_owned() });
    let mut prepared = prepare("a", &text).unwrap();
    assert!(
        resolve_namespaces(&mut prepared.spec, unknown)
            .unwrap_err()
            .to_string()
            .contains("\"b\" not found")
    );
}

#[test]
fn a_container_with_users_of_its_own_has_a_network_of_its_own() {
    let prepared = prepare(
        "a",
        &json(|spec| {
            spec["linux"]["namespaces"] = serde_json::json!([{"type": "user"}, {"type": "network"}]);
            spec["linux"]["uidMappings"] =
                serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
            spec["process"]["terminal"] = true.into();
        }),
    )
    .unwrap();
    assert!(prepared.new_network);
    assert_eq!(prepared.uid, 1007);
    assert_eq!(prepared.terminal.unwrap().uid, 1007);
}

#[test]
fn bad_input_is_an_error_with_its_path() {
    for (pointer, value, want) in [
        (
            "/process/args",
            serde_json::json!([1]),
            "process.args[0]: 1 is no text",
        ),
        (
            "/process/user/uid",
            serde_json::json!(-1),
            "process.user.uid: -1 is no whole number",
        ),
        (
            "/process/user/gid",
            serde_json::json!("0"),
            "process.user.gid: \"0\" is no whole number",
        ),
        (
            "/process/env",
            serde_json::json!(["A=\u{0}"]),
            "process.env[0]: has a NUL",
        ),
        (
            "/process/capabilities",
            serde_json::json!([]),
            "process.capabilities: is no object",
        ),
        (
            "/process/rlimits",
            serde_json::json!([{"type": "RLIMIT_CPU"}]),
            "process.rlimits[0].hard: is missing",
        ),
        (
            "/mounts",
            serde_json::json!([{"destination": "", "type": "tmpfs"}]),
            "mounts[0].destination: ",
        ),
        (
            "/mounts",
            vec![serde_json::json!({}); 10_000].into(),
            "mounts: 10000 elements",
        ),
        (
            "/linux/namespaces",
            serde_json::json!([{"type": "time travel"}]),
            "linux.namespaces[0].type: ",
        ),
        (
            "/linux/seccomp",
            serde_json::json!({"defaultAction": "X"}),
            "linux.seccomp.defaultAction: ",
        ),
        (
            "/linux/resources",
            serde_json::json!({"memory": {"limit": -2}}),
            "linux.resources.memory.limit: -2",
        ),
        (
            "/linux/rootfsPropagation",
            serde_json::json!("upwards"),
            "linux.rootfsPropagation: ",
        ),
        ("/root", serde_json::json!("rootfs"), "root: is no object"),
        ("/linux", serde_json::json!(1), "linux: is no object"),
        ("/process", serde_json::json!(null), "process: is missing"),
    ] {
        let text = refusal(|spec| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value;
        });
        assert!(text.starts_with(&format!("spec: {want}")), "{pointer}: {text}");
    }
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for bytes in [
        deep.as_bytes(),
        b"",
        b"\xff",
        b"[]",
        b"\"x\"",
        b"{\"ociVersion\": \"1\"",
        b"{\"process\":\"\xff\"}",
    ] {
        let text = prepare("a", bytes).unwrap_err().to_string();
        assert!(text.starts_with("spec: "), "{text}");
        assert!(parse_process(bytes).is_err());
    }
}

#[test]
fn every_word_of_the_table_is_understood() {
    use nacre_protocol::spec::{Kind, SPEC, leaves};
    use serde_json::json;
    let mut seen = 0;
    for (path, leaf) in leaves(&SPEC, "") {
        let (Kind::Word(words) | Kind::WordExcept(words, _) | Kind::KnownWord(words)) = leaf.kind else {
            continue;
        };
        for word in words {
            let syscall = |action: &str, op: &str| {
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": action,
                    "args": [{"index": 0, "value": 1, "op": op}]}]})
            };
            let (pointer, value) = match path.as_str() {
                "process.scheduler.policy" => ("/process/scheduler", json!({"policy": word})),
                "process.scheduler.flags[]" => (
                    "/process/scheduler",
                    json!({"policy": "SCHED_OTHER", "flags": [word]}),
                ),
                "process.ioPriority.class" => ("/process/ioPriority", json!({"class": word, "priority": 1})),
                "process.rlimits[].type" => {
                    ("/process/rlimits", json!([{"type": word, "hard": 1, "soft": 1}]))
                }
                "linux.namespaces[].type" => ("/linux/namespaces", json!([{"type": word}])),
                "linux.devices[].type" => (
                    "/linux/devices",
                    json!([{"type": word, "path": "/dev/x", "major": 1, "minor": 3}]),
                ),
                "linux.resources.devices[].type" => (
                    "/linux/resources",
                    json!({"devices": [{"allow": true, "type": word, "access": "r"}]}),
                ),
                "linux.rootfsPropagation" => ("/linux/rootfsPropagation", json!(word)),
                "linux.personality.domain" => ("/linux/personality", json!({"domain": word})),
                "linux.seccomp.defaultAction" => ("/linux/seccomp", json!({"defaultAction": word})),
                "linux.seccomp.architectures[]" => (
                    "/linux/seccomp",
                    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [word]}),
                ),
                "linux.seccomp.flags[]" => (
                    "/linux/seccomp",
                    json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": [word]}),
                ),
                "linux.seccomp.syscalls[].action" => ("/linux/seccomp", syscall(word, "SCMP_CMP_EQ")),
                "linux.seccomp.syscalls[].args[].op" => ("/linux/seccomp", syscall("SCMP_ACT_ERRNO", word)),
                other => {
                    let set = other
                        .strip_prefix("process.capabilities.")
                        .and_then(|set| set.strip_suffix("[]"));
                    ("/process/capabilities", json!({set.unwrap(): [word]}))
                }
            };
            let text = json(|spec| {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                spec.pointer_mut(parent).unwrap()[key] = value;
            });
            prepare("a", &text).unwrap_or_else(|error| panic!("{path} = {word}: {error}"));
            seen += 1;
        }
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn a_mask_is_where_libcontainer_looks_for_it() {
    let args = serde_json::json!([
        {"index": 0, "value": 5, "valueTwo": 4, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 1, "value": 5, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 2, "value": 5, "op": "SCMP_CMP_EQ"}
    ]);
    let prepared = prepare(
        "a",
        &json(|spec| {
            let call = serde_json::json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": args});
            spec["linux"]["seccomp"] =
                serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]});
        }),
    )
    .unwrap();
    let seccomp = prepared.spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    let args = seccomp.syscalls().as_ref().unwrap()[0].args().clone().unwrap();
    let values: Vec<_> = args.iter().map(|arg| (arg.value(), arg.value_two())).collect();
    assert_eq!(values, [(4, Some(5)), (0, Some(5)), (5, None)]);
}

#[test]
fn what_may_be_missing_or_empty_is_understood() {
    use serde_json::json;
    let least = json!({"ociVersion": "1.2", "process": {"args": ["a"], "cwd": "/"}, "root": {"path": "/r"}, "linux": {}});
    let prepared = |change: &dyn Fn(&mut Value)| {
        let mut spec = least.clone();
        change(&mut spec);
        prepare("a", &serde_json::to_vec(&spec).unwrap()).unwrap_or_else(|error| panic!("{spec}: {error}"))
    };
    assert_eq!(prepared(&|_| {}).uid, 0);
    for (pointer, value) in [
        ("/process/user", json!({})),
        ("/process/user", json!({"uid": 7})),
        ("/process/user", json!(null)),
        ("/process/capabilities", json!({})),
        ("/process/execCPUAffinity", json!({})),
        ("/process/env", json!(null)),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"})),
        ("/process/scheduler", json!({"policy": "SCHED_BATCH"})),
        ("/linux/resources", json!({})),
        (
            "/linux/resources",
            json!({"memory": {}, "cpu": {}, "pids": {}, "devices": [], "hugepageLimits": [], "unified": {}}),
        ),
        (
            "/linux/resources",
            json!({"pids": {"limit": null}, "devices": [{"allow": true}]}),
        ),
        ("/linux/timeOffsets", json!({})),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {}, "boottime": {"secs": 1}}),
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}),
        ),
        ("/linux/devices", json!([{"type": "p", "path": "/dev/fifo"}])),
        ("/linux/namespaces", json!([])),
        ("/linux/cgroupsPath", json!("")),
        ("/linux/rootfsPropagation", json!("")),
        ("/hooks", json!({"startContainer": [{"path": "/bin/true"}]})),
        ("/mounts", json!([{"destination": "/p", "type": "proc"}])),
        ("/annotations", json!({})),
        ("/hostname", json!("")),
    ] {
        let prepared = prepared(&|spec: &mut Value| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value.clone();
        });
        assert_eq!(prepared.limits, [], "{pointer} = {value}");
    }
}
