//! Whole specs and process objects.

use serde_json::{Value, json};

use super::*;

#[test]
fn keys_outside_of_the_specification_are_ignored() {
    let mut spec = minimal();
    spec["x"] = json!(1);
    spec["process"]["y"] = json!({"deep": 2});
    spec["mounts"] = json!([{"destination": "/p", "type": "proc", "z\n": 3}]);
    let findings = filter_spec(&mut spec);
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
fn an_unknown_capability_is_ignored() {
    let mut spec = with(
        "process.capabilities.bounding",
        json!(["CAP_KILL", "CAP_NEW", "CAP_CHOWN"]),
    );
    let findings = filter_spec(&mut spec);
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored[0].path, "process.capabilities.bounding[1]");
    assert_eq!(
        spec["process"]["capabilities"]["bounding"],
        json!(["CAP_KILL", "CAP_CHOWN"])
    );
}

#[test]
fn missing_fields_are_refused() {
    let missing = |pointers: &[&str]| {
        let mut spec = minimal();
        for pointer in pointers {
            *spec.pointer_mut(pointer).unwrap() = Value::Null;
        }
        filter_spec(&mut spec).refusals()
    };
    assert_eq!(
        filter_spec(&mut json!({})).refusals(),
        "ociVersion: is missing; root: is missing; process: is missing; linux: is missing"
    );
    for (pointers, want) in [
        (&["/process"][..], "process: is missing"),
        (&["/process/cwd"], "process.cwd: is missing"),
        (
            &["/root/path", "/linux"],
            "root.path: is missing; linux: is missing",
        ),
        (
            &["/process/args"],
            "process.args: the first element must be a command",
        ),
        (
            &["/process/args/0"],
            "process.args[0]: expected a string, got null",
        ),
    ] {
        assert_eq!(missing(pointers), want);
    }
    for (pointer, value, want) in [
        (
            "/process/args/0",
            "",
            "process.args: the first element must be a command",
        ),
        (
            "/ociVersion",
            "2.0",
            "ociVersion: expected a version 1.x, got \"2.0\"",
        ),
    ] {
        let mut spec = minimal();
        *spec.pointer_mut(pointer).unwrap() = json!(value);
        assert_eq!(filter_spec(&mut spec).refusals(), want);
    }
    for (wrong, shown) in [
        (json!([]), "a list"),
        (json!("x"), "\"x\""),
        (json!(null), "null"),
        (json!(5), "5"),
    ] {
        assert_eq!(
            filter_spec(&mut wrong.clone()).refusals(),
            format!("config.json: expected an object, got {shown}")
        );
    }
}

#[test]
fn a_process_alone_follows_the_same_table() {
    let mut process = json!({"args": ["a"], "cwd": "/", "selinuxLabel": "x", "z": 1, "user": {"uid": -1}});
    let findings = filter_process(&mut process);
    assert_eq!(
        findings.refusals(),
        "process.user.uid: expected an integer in 0..=4294967294, got -1"
    );
    let paths: Vec<_> = findings
        .ignored
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(paths, ["process.selinuxLabel", "process.z"]);
    assert_eq!(
        filter_process(&mut json!({"cwd": "/"})).refusals(),
        "process.args: the first element must be a command"
    );
    assert_eq!(
        filter_process(&mut json!(null)).refusals(),
        "process: expected an object, got null"
    );
}

#[test]
fn findings_are_bounded_in_number_and_length() {
    let mut spec = minimal();
    spec["mounts"] = (0..10_000)
        .map(|_| json!({"destination": "/a", "type": "proc"}))
        .collect();
    assert_eq!(
        filter_spec(&mut spec).refusals(),
        "mounts: expected at most 1024 elements, got 10000"
    );
    for field in ["maskedPaths", "readonlyPaths"] {
        let mut spec = minimal();
        spec["linux"][field] = vec![json!("/a"); 20_000].into();
        let want = format!("linux.{field}: expected at most 1024 elements, got 20000");
        assert_eq!(filter_spec(&mut spec).refusals(), want);
    }
    let mut spec = minimal();
    spec["process"]["env"] = (0..1000).map(|n| json!(n)).collect();
    let findings = filter_spec(&mut spec);
    assert_eq!(findings.refused.len(), 64);
    let mut spec = minimal();
    spec["process"]["cwd"] = "x".repeat(1 << 20).into();
    spec["k".repeat(1 << 20)] = json!(1);
    let findings = filter_spec(&mut spec);
    assert!(findings.refusals().len() < 200 && findings.ignored[0].path.len() < 200);
}
