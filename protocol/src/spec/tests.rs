//! The table is whole, and the walk names what it finds.

use serde_json::{Value, json};

use super::*;

fn least() -> Value {
    json!({"ociVersion": "1.2.0", "process": {"args": ["a"], "cwd": "/"}, "root": {"path": "rootfs"}})
}

/// Puts `value` where `path` says, in a spec that has nothing else.
fn with(path: &str, value: Value) -> Value {
    fn put(target: &mut Value, path: &[&str], value: Value) {
        let Some((first, rest)) = path.split_first() else {
            *target = value;
            return;
        };
        let lists = first.matches("[]").count();
        let mut next = &mut *target;
        let name = first.trim_end_matches("[]");
        if next.is_null() {
            *next = json!({});
        }
        next = &mut next[if name == "*" { "any" } else { name }];
        for _ in 0..lists {
            if !next.is_array() {
                *next = json!([null]);
            }
            next = &mut next[0];
        }
        put(next, rest, value);
    }
    let mut spec = least();
    if path.starts_with("mounts[].") {
        spec["mounts"] = json!([{"type": "proc", "destination": "/x"}]);
    }
    put(&mut spec, &path.split('.').collect::<Vec<_>>(), value);
    spec
}

/// The path of a leaf as it is in a spec made by [`with`].
fn concrete(path: &str) -> String {
    path.replace("[]", "[0]").replace(".*", "[\"any\"]")
}

fn sample(path: &str, kind: Kind) -> Value {
    match kind {
        Kind::Text if path == "mounts[].type" => json!("tmpfs"),
        Kind::Text | Kind::Foreign => json!("x"),
        Kind::Path | Kind::Place => json!("/x"),
        Kind::Version => json!("1.0"),
        Kind::Cpus => json!("0"),
        Kind::Flag => json!(true),
        Kind::Number(_, most) => json!(u64::try_from(most.min(7)).unwrap()),
        Kind::Word(words) | Kind::WordExcept(words, _) | Kind::KnownWord(words) => json!(words.last()),
    }
}

#[test]
fn each_refused_field_is_refused_by_its_path_and_reason() {
    let mut count = 0;
    for (path, leaf) in leaves(&SPEC, "") {
        let (Fate::Refused(reason) | Fate::RefusedWithZero(reason)) = leaf.fate else {
            continue;
        };
        let findings = sift(&mut with(&path, sample(&path, leaf.kind)));
        let want = Finding {
            path: concrete(&path),
            reason: reason.to_owned(),
        };
        assert!(findings.refused.contains(&want), "{path}: {findings:?}");
        assert!(
            findings
                .refusals()
                .contains(&format!("{}: {reason}", concrete(&path)))
        );
        let zero = sift(&mut with(&path, json!(0)));
        let zero_asks = matches!(leaf.fate, Fate::RefusedWithZero(_));
        assert_eq!(zero.refused.contains(&want), zero_asks, "{path}: {zero:?}");
        count += 1;
    }
    assert!(count > 30, "{count}");
}

#[test]
fn each_ignored_field_is_named_and_taken_out() {
    for (path, leaf) in leaves(&SPEC, "") {
        if let Fate::Ignored(reason) = leaf.fate {
            let mut spec = with(&path, sample(&path, leaf.kind));
            let findings = sift(&mut spec);
            assert_eq!(findings.refused, [], "{path}");
            let want = Finding {
                path: concrete(&path),
                reason: reason.to_owned(),
            };
            assert_eq!(findings.ignored, [want], "{path}");
            let mut empty = least();
            sift(&mut empty);
            assert!(
                !spec.to_string().contains(path.rsplit('.').next().unwrap()),
                "{spec}"
            );
        }
    }
}

#[test]
fn each_applied_field_is_kept_and_a_wrong_value_of_it_refused_by_its_path() {
    for (path, leaf) in leaves(&SPEC, "") {
        let Fate::Applied(_) = leaf.fate else {
            continue;
        };
        let mut spec = with(&path, sample(&path, leaf.kind));
        let before = spec.clone();
        let findings = sift(&mut spec);
        let at = concrete(&path);
        assert!(
            !findings.refused.iter().any(|finding| finding.path == at),
            "{path}: {findings:?}"
        );
        assert_eq!(spec, before, "{path}");
        let wrong = match leaf.kind {
            Kind::Flag | Kind::Number(..) => {
                vec![json!("1"), json!([1]), json!({}), json!(0.5), json!(1e300)]
            }
            Kind::Text
            | Kind::Path
            | Kind::Place
            | Kind::Version
            | Kind::Cpus
            | Kind::Word(_)
            | Kind::WordExcept(..)
            | Kind::KnownWord(_)
            | Kind::Foreign => vec![
                json!(1),
                json!(true),
                json!(["x"]),
                json!({"a": 1}),
                json!("a\0b"),
            ],
        };
        for wrong in wrong {
            let findings = sift(&mut with(&path, wrong.clone()));
            let found = findings
                .refused
                .iter()
                .chain(&findings.ignored)
                .any(|finding| finding.path == at);
            assert!(found, "{path} = {wrong}: {findings:?}");
        }
        if let Kind::Number(least, most) = leaf.kind {
            for wrong in [least - 1, most + 1] {
                let wrong = i64::try_from(wrong).map_or_else(|_| json!(1e30), |number| json!(number));
                let findings = sift(&mut with(&path, wrong.clone()));
                assert!(
                    findings.refused.iter().any(|finding| finding.path == at),
                    "{path} = {wrong}"
                );
            }
        }
        if let Kind::Word(_) | Kind::WordExcept(..) | Kind::KnownWord(_) = leaf.kind {
            let findings = sift(&mut with(&path, json!("NONSENSE")));
            let found = findings
                .refused
                .iter()
                .chain(&findings.ignored)
                .any(|finding| finding.path == at);
            assert!(found, "{path}: {findings:?}");
        }
    }
}

#[test]
fn known_words_that_can_t_be_are_refused_with_their_reason() {
    for (path, word) in [
        ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY"),
        ("process.scheduler.policy", "SCHED_ISO"),
        ("linux.devices[].type", "b"),
    ] {
        let findings = sift(&mut with(path, json!(word)));
        let at = concrete(path);
        let reason = &findings
            .refused
            .iter()
            .find(|finding| finding.path == at)
            .unwrap()
            .reason;
        assert!(reason.starts_with(&format!("{word}: ")), "{reason}");
    }
}

#[test]
fn what_is_empty_asks_for_nothing_and_goes() {
    let mut spec = least();
    spec["process"]["apparmorProfile"] = json!("");
    spec["process"]["consoleSize"] = json!(null);
    spec["hooks"] = json!({"createContainer": []});
    spec["windows"] = json!(null);
    spec["linux"] = json!({"resources": {"rdma": {}, "network": {"classID": 0}, "blockIO": {"weight": 0},
        "memory": {"kernel": -1, "disableOOMKiller": false}, "cpu": {"cpus": "", "mems": ""}}, "seccomp": null,
        "intelRdt": {"closID": ""}});
    assert_eq!(sift(&mut spec), Findings::default());
    assert_eq!(spec["linux"]["resources"]["memory"], json!({}));
    assert!(spec.get("windows").is_none() && spec["linux"].get("seccomp").is_none());
}

#[test]
fn keys_of_no_specification_are_named_and_taken_out() {
    let mut spec = least();
    spec["x"] = json!(1);
    spec["process"]["y"] = json!({"deep": 2});
    spec["mounts"] = json!([{"destination": "/p", "type": "proc", "z\n": 3}]);
    let findings = sift(&mut spec);
    assert_eq!(findings.refused, []);
    let paths: Vec<_> = findings
        .ignored
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(paths, ["mounts[0].\"z\\n\"", "process.y", "x"]);
    assert_eq!(spec["mounts"], json!([{"destination": "/p", "type": "proc"}]));
}

#[test]
fn an_unknown_capability_is_named_and_taken_out() {
    let mut spec = with(
        "process.capabilities.bounding",
        json!(["CAP_KILL", "CAP_NEW", "CAP_CHOWN"]),
    );
    let findings = sift(&mut spec);
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored[0].path, "process.capabilities.bounding[1]");
    assert_eq!(
        spec["process"]["capabilities"]["bounding"],
        json!(["CAP_KILL", "CAP_CHOWN"])
    );
}

#[test]
fn what_is_missing_is_named() {
    for (change, path) in [
        (json!({}), "ociVersion: is missing; process: is missing"),
        (
            json!({"ociVersion": "1.0", "process": null}),
            "process: is missing",
        ),
        (
            json!({"ociVersion": "1.0", "process": {"args": ["a"]}}),
            "process.cwd: is missing",
        ),
        (
            json!({"ociVersion": "1.0", "process": {"cwd": "/"}}),
            "process.args: names no command",
        ),
        (
            json!({"ociVersion": "1.0", "process": {"cwd": "/", "args": [""]}}),
            "process.args: names no command",
        ),
        (
            json!({"ociVersion": "1.0", "process": {"cwd": "/", "args": [null]}}),
            "process.args[0]: null is no text",
        ),
        (
            json!({"ociVersion": "2.0", "process": {"cwd": "/", "args": ["a"]}}),
            "ociVersion: \"2.0\" is no version 1.x",
        ),
    ] {
        assert_eq!(sift(&mut change.clone()).refusals(), path, "{change}");
    }
    for wrong in [json!([]), json!("x"), json!(null), json!(5)] {
        assert_eq!(
            sift(&mut wrong.clone()).refusals(),
            "the spec: is no object",
            "{wrong}"
        );
    }
}

#[test]
fn a_process_alone_follows_the_same_table() {
    let mut process = json!({"args": ["a"], "cwd": "/", "selinuxLabel": "x", "z": 1, "user": {"uid": -1}});
    let findings = sift_process(&mut process);
    assert_eq!(
        findings.refusals(),
        "process.user.uid: -1 is no whole number from 0 to 4294967294"
    );
    let paths: Vec<_> = findings
        .ignored
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(paths, ["process.selinuxLabel", "process.z"]);
    assert_eq!(
        sift_process(&mut json!({"cwd": "/"})).refusals(),
        "process.args: names no command"
    );
    assert_eq!(sift_process(&mut json!(null)).refusals(), "process: is no object");
}

#[test]
fn findings_are_bounded_in_number_and_length() {
    let mut spec = least();
    spec["mounts"] = (0..10_000)
        .map(|_| json!({"destination": "/a", "type": "proc"}))
        .collect();
    assert_eq!(sift(&mut spec).refusals(), "mounts: 10000 elements; at most 1024");
    for field in ["maskedPaths", "readonlyPaths"] {
        let mut spec = least();
        spec["linux"][field] = vec![json!("/a"); 20_000].into();
        let want = format!("linux.{field}: 20000 elements; at most 1024");
        assert_eq!(sift(&mut spec).refusals(), want);
    }
    let mut spec = least();
    spec["process"]["env"] = (0..1000).map(|n| json!(n)).collect();
    let findings = sift(&mut spec);
    assert_eq!(findings.refused.len(), 64);
    let mut spec = least();
    spec["process"]["cwd"] = "x".repeat(1 << 20).into();
    spec["k".repeat(1 << 20)] = json!(1);
    let findings = sift(&mut spec);
    assert!(findings.refusals().len() < 200 && findings.ignored[0].path.len() < 200);
}

#[test]
fn mount_options_by_kind_of_mount() {
    let sifted = |mount: Value| {
        let mut spec = least();
        spec["mounts"] = json!([mount]);
        let findings = sift(&mut spec);
        (findings, spec["mounts"][0]["options"].clone())
    };
    let (findings, left) = sifted(json!({"destination": "/a", "type": "tmpfs",
        "options": ["silent", "sync", "size=5", "rshared"]}));
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored[0].path, "mounts[0].options[0]");
    assert_eq!(left, json!(["sync", "size=5", "rshared"]));
    let (findings, left) = sifted(json!({"destination": "/a", "type": "none", "source": "/x",
        "options": ["rbind", "sync", "size=5", "rprivate"]}));
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored.len(), 2);
    assert_eq!(left, json!(["rbind", "rprivate"]));
    for option in OPTIONS {
        for (kind, of_type, fate) in [
            (MountKind::InGuest, "tmpfs", option.in_guest),
            (MountKind::HostBind, "bind", option.host_bind),
        ] {
            assert_eq!(super::option(option.word, kind), fate);
            if kind == MountKind::InGuest && option.word.ends_with("bind") && option.word.len() < 6 {
                continue;
            }
            let (findings, left) = sifted(json!({"destination": "/a", "type": of_type, "source": "/x",
                "options": [option.word]}));
            let at = |list: &[Finding]| list.iter().any(|finding| finding.path == "mounts[0].options[0]");
            let want = match fate {
                OptionFate::Applied => (false, false),
                OptionFate::Ignored(_) => (false, true),
                OptionFate::Refused(_) => (true, false),
            };
            assert_eq!(
                (at(&findings.refused), at(&findings.ignored)),
                want,
                "{} {of_type}",
                option.word
            );
            assert_eq!(left == json!([option.word]), fate == OptionFate::Applied);
        }
    }
    let (findings, _) = sifted(json!({"destination": "/a", "type": "tmpfs", "options": ["ridmap"]}));
    assert_eq!(findings.refused.len(), 1);
}

#[test]
fn mounts_that_can_t_be_made_are_refused_by_path() {
    for (mount, path) in [
        (
            json!({"destination": "/a", "type": "nfs", "source": "h:/x"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/a", "type": "overlay", "options": ["lowerdir=/a"]}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "", "type": "proc"}),
            "mounts[0].destination",
        ),
        (json!({"type": "proc"}), "mounts[0].destination"),
        (json!("x"), "mounts[0]"),
    ] {
        let mut spec = least();
        spec["mounts"] = json!([mount]);
        let findings = sift(&mut spec);
        assert_eq!(findings.refused.len(), 1, "{mount}: {findings:?}");
        assert_eq!(findings.refused[0].path, path, "{mount}");
    }
}

#[test]
fn text_that_is_no_utf8_is_found() {
    let broken = json!({"a": ["x", {"b": "y\u{fffd}"}]});
    assert_eq!(find_broken_text(&broken, "").as_deref(), Some("a[1].b"));
    assert_eq!(find_broken_text(&json!({"a": 1, "b": null, "c": true}), ""), None);
    assert!(find_broken_text(&json!({"\u{fffd}": 1}), "x").is_some());
}

#[test]
fn the_lists_have_no_word_twice() {
    let mut words: Vec<_> = OPTIONS.iter().map(|option| option.word).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), OPTIONS.len());
    let mut paths: Vec<_> = leaves(&SPEC, "").into_iter().map(|(path, _)| path).collect();
    let all = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), all);
}

#[test]
fn an_update_follows_the_same_table() {
    let mut resources = json!({"memory": {"limit": 5}, "cpu": {"cpus": "0", "shares": 2}, "pids": null, "x": 1,
        "devices": [{"allow": true}]});
    let findings = sift_update(&mut resources);
    assert_eq!(findings.refused, []);
    let paths: Vec<_> = findings
        .ignored
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "linux.resources.x",
            "linux.resources.devices",
            "linux.resources.cpu.cpus"
        ]
    );
    assert_eq!(resources, json!({"memory": {"limit": 5}, "cpu": {"shares": 2}}));
    let findings = sift_update(&mut json!({"blockIO": {"weight": 5}, "memory": {"limit": -5}}));
    assert!(
        findings
            .refusals()
            .starts_with("linux.resources.blockIO.weight: "),
        "{findings:?}"
    );
    assert!(findings.refusals().contains("linux.resources.memory.limit: -5"));
    assert_eq!(
        sift_update(&mut json!([])).refusals(),
        "linux.resources: is no object"
    );
    assert_eq!(
        sift_update(&mut json!({"devices": [], "cpu": {"cpus": ""}})),
        Findings::default()
    );
}

#[test]
fn disks_are_left_out_where_every_device_is_allowed_and_refused_elsewhere() {
    let mut spec = least();
    let disk = |n: u32| json!({"type": "b", "path": format!("/dev/disk{n}"), "major": 8, "minor": n});
    let tty = json!({"type": "c", "path": "/dev/tty", "major": 5, "minor": 0});
    let mut devices: Vec<Value> = (0..500).map(disk).collect();
    devices.push(tty.clone());
    spec["linux"] = json!({"devices": devices, "resources": {"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "access": "rwm"}]}});
    let mut refused = spec.clone();
    let findings = sift(&mut spec);
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored.len(), 1);
    let reason = &findings.ignored[0].reason;
    assert!(
        reason.contains("/dev/disk0, /dev/disk1, ") && reason.ends_with(", …") && reason.len() < 600,
        "{reason}"
    );
    assert_eq!(spec["linux"]["devices"], json!([tty]));
    for rule in [
        json!({"allow": false, "access": "rwm"}),
        json!({"allow": true, "access": "rw"}),
        json!({"allow": true, "type": "b", "access": "rwm"}),
        json!({"allow": true, "major": 8, "access": "rwm"}),
    ] {
        refused["linux"]["resources"]["devices"] = json!([rule]);
        let findings = sift(&mut refused.clone());
        assert_eq!(findings.refused.len(), 64, "{rule}");
        assert_eq!(findings.refused[0].path, "linux.devices[0].type");
    }
}
