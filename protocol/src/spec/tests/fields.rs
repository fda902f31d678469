//! The table: each field is handled as it says.

use serde_json::json;

use super::*;

#[test]
fn each_refused_field_is_reported_with_its_reason() {
    let mut count = 0;
    for (path, leaf) in leaves(&SPEC, "") {
        let (Handling::Refused(reason) | Handling::RefusedWithZero(reason)) = leaf.handling else {
            continue;
        };
        let findings = filter_spec(&mut with(&path, sample(&path, leaf.kind)));
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
        let zero = filter_spec(&mut with(&path, json!(0)));
        let zero_asks = matches!(leaf.handling, Handling::RefusedWithZero(_));
        assert_eq!(zero.refused.contains(&want), zero_asks, "{path}: {zero:?}");
        count += 1;
    }
    assert!(count > 30, "{count}");
}

#[test]
fn each_ignored_field_is_reported_and_removed() {
    for (path, leaf) in leaves(&SPEC, "") {
        if let Handling::Ignored(reason) = leaf.handling {
            let mut spec = with(&path, sample(&path, leaf.kind));
            let findings = filter_spec(&mut spec);
            assert_eq!(findings.refused, [], "{path}");
            let want = Finding {
                path: concrete(&path),
                reason: reason.to_owned(),
            };
            assert_eq!(findings.ignored, [want], "{path}");
            let mut empty = minimal();
            filter_spec(&mut empty);
            assert!(
                !spec.to_string().contains(path.rsplit('.').next().unwrap()),
                "{spec}"
            );
        }
    }
}

/// Values that no field of this kind accepts.
fn wrong_values(kind: Kind) -> Vec<Value> {
    match kind {
        Kind::Boolean | Kind::Integer(..) => {
            vec![json!("1"), json!([1]), json!({}), json!(0.5), json!(1e300)]
        }
        Kind::Variable => ["", "NAME", "=value", "NAME=a\0b"]
            .iter()
            .map(|text| json!(text))
            .collect(),
        Kind::String
        | Kind::AbsolutePath
        | Kind::MountDestination
        | Kind::DevicePath
        | Kind::DeviceAccess
        | Kind::PageSize
        | Kind::SpecVersion
        | Kind::CpuList
        | Kind::OneOf(_)
        | Kind::OneOfExcept(..)
        | Kind::OneOfOrIgnored(_)
        | Kind::Any => vec![
            json!(1),
            json!(true),
            json!(["x"]),
            json!({"a": 1}),
            json!("a\0b"),
        ],
    }
}

#[test]
fn each_applied_field_is_kept_and_refuses_wrong_values() {
    for (path, leaf) in leaves(&SPEC, "") {
        let Handling::Applied(_) = leaf.handling else {
            continue;
        };
        let mut spec = with(&path, sample(&path, leaf.kind));
        let before = spec.clone();
        let findings = filter_spec(&mut spec);
        let at = concrete(&path);
        assert!(
            !findings.refused.iter().any(|finding| finding.path == at),
            "{path}: {findings:?}"
        );
        assert_eq!(spec, before, "{path}");
        for wrong in wrong_values(leaf.kind) {
            let findings = filter_spec(&mut with(&path, wrong.clone()));
            let found = findings
                .refused
                .iter()
                .chain(&findings.ignored)
                .any(|finding| finding.path == at);
            assert!(found, "{path} = {wrong}: {findings:?}");
        }
        if let Kind::Integer(min, max) = leaf.kind {
            for wrong in [min - 1, max + 1] {
                let wrong = i64::try_from(wrong).map_or_else(|_| json!(1e30), |number| json!(number));
                let findings = filter_spec(&mut with(&path, wrong.clone()));
                assert!(
                    findings.refused.iter().any(|finding| finding.path == at),
                    "{path} = {wrong}"
                );
            }
        }
        if let Kind::OneOf(_) | Kind::OneOfExcept(..) | Kind::OneOfOrIgnored(_) = leaf.kind {
            let findings = filter_spec(&mut with(&path, json!("NONSENSE")));
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
fn names_that_are_refused_have_a_reason() {
    for (path, word) in [
        ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY"),
        ("process.scheduler.policy", "SCHED_ISO"),
    ] {
        let findings = filter_spec(&mut with(path, json!(word)));
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
fn fields_that_are_not_set_are_removed_without_a_finding() {
    let mut spec = minimal();
    spec["process"]["apparmorProfile"] = json!("");
    spec["process"]["consoleSize"] = json!(null);
    spec["hooks"] = json!({"createContainer": []});
    spec["windows"] = json!(null);
    spec["linux"] = json!({"resources": {"rdma": {}, "network": {"classID": 0}, "blockIO": {"weight": 0},
        "memory": {"kernel": -1, "disableOOMKiller": false}, "cpu": {"cpus": "", "mems": ""}}, "seccomp": null,
        "intelRdt": {"closID": ""}});
    assert_eq!(filter_spec(&mut spec), Findings::default());
    assert_eq!(spec["linux"]["resources"]["memory"], json!({}));
    assert!(spec.get("windows").is_none() && spec["linux"].get("seccomp").is_none());
}

#[test]
fn options_and_paths_are_unique() {
    let mut words: Vec<_> = OPTIONS.iter().map(|option| option.name).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), OPTIONS.len());
    let mut paths: Vec<_> = leaves(&SPEC, "").into_iter().map(|(path, _)| path).collect();
    let all = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), all);
}
