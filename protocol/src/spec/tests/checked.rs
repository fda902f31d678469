//! From JSON to a checked document, or to a refusal.

use serde_json::json;

use super::*;

/// The text that `spec` is refused with.
fn refusal(spec: &Value) -> String {
    check(spec.to_string().as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_checked_spec_has_the_applied_fields_and_reports_the_others() {
    let mut spec = minimal();
    spec["future"] = json!(1);
    spec["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
    let checked = check(spec.to_string().as_bytes()).unwrap();
    assert_eq!(checked.value(), &minimal());
    let paths: Vec<_> = checked
        .ignored()
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(paths, ["future", "process.apparmorProfile"]);
    let checked_again = check(checked.value().to_string().as_bytes()).unwrap();
    assert_eq!(checked_again.ignored(), []);
    assert_eq!(checked_again.into_parts().0, minimal());
}

#[test]
fn the_process_of_an_exec_is_checked() {
    let checked = check_process(br#"{"args":["a"],"cwd":"/","selinuxLabel":"x","terminal":true}"#).unwrap();
    assert_eq!(
        checked.value(),
        &json!({"args": ["a"], "cwd": "/", "terminal": true})
    );
    assert_eq!(checked.ignored()[0].path, "process.selinuxLabel");
    for (json, want) in [
        (
            &br#"{"args":["a"],"cwd":"x"}"#[..],
            "process.cwd: expected an absolute path, got \"x\"",
        ),
        (
            b"{\"args\":[\"a\xff\"],\"cwd\":\"/\"}",
            "process.args[0]: is not UTF-8",
        ),
        (b"[]", "process: expected an object, got a list"),
        (b"null", "process: expected an object, got null"),
        (b"\"a\"", "process: expected an object, got \"a\""),
        (b"", "process: EOF while parsing"),
        (b"{", "process: EOF while parsing"),
        (b"\xff", "process: expected value"),
    ] {
        let error = check_process(json).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn the_resources_of_an_update_are_checked() {
    let json =
        br#"{"memory":{"limit":5},"cpu":{"cpus":"0","shares":2},"devices":[{"allow":false,"access":"rwm"}]}"#;
    let checked = check_resources(json).unwrap();
    assert_eq!(
        checked.value(),
        &json!({"memory": {"limit": 5}, "cpu": {"cpus": "0", "shares": 2}})
    );
    let paths: Vec<_> = checked
        .ignored()
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(paths, ["linux.resources.devices"]);
    let error = check_resources(br#"{"cpu":{"mems":"0"}}"#)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("linux.resources.cpu.mems: "), "{error}");
}

/// Where a value goes, the value, and how its refusal begins.
fn wrong_fields() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        (
            "/process/args",
            vec![json!("a"); 100_000].into(),
            "process.args: expected at most 65536 elements, got 100000",
        ),
        (
            "/process/args",
            json!([7]),
            "process.args[0]: expected a string, got 7",
        ),
        (
            "/process/env",
            json!(["A=\u{0}"]),
            "process.env[0]: contains a NUL character",
        ),
        (
            "/process/capabilities",
            json!([]),
            "process.capabilities: expected an object, got a list",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X", "hard": 1, "soft": 1}]),
            "process.rlimits[0].type: expected one of RLIMIT_AS, ",
        ),
        (
            "/process/oomScoreAdj",
            json!(-1001),
            "process.oomScoreAdj: expected an integer in -1000..=1000, got -1001",
        ),
        (
            "/process/terminal",
            json!("yes"),
            "process.terminal: expected true or false, got \"yes\"",
        ),
        (
            "/linux/resources",
            json!({"pids": {"limit": -2}}),
            "linux.resources.pids.limit: expected an integer in -1..=9223372036854775807, got -2",
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": "5"}}),
            "linux.resources.memory.limit: expected an integer in -1..=9223372036854775807, got \"5\"",
        ),
        (
            "/annotations",
            json!({"a": "x".repeat(MAX_SPEC)}),
            "config.json: expected at most 3145728 bytes, got 3145",
        ),
        ("/process", json!(null), "process: is missing"),
        ("/linux", json!(null), "linux: is missing"),
        ("/root", json!(null), "root: is missing"),
    ]
}

#[test]
fn values_of_the_wrong_type_or_out_of_range_are_refused() {
    let deep = format!("{{\"deep\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let error = check(deep.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("config.json: recursion limit"), "{error}");
    for (pointer, value, want) in wrong_fields() {
        let mut spec = minimal();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let error = refusal(&spec);
        assert!(error.starts_with(want), "{error}");
        assert!(error.len() < 20_000);
    }
}

#[test]
fn invalid_utf8_is_refused_with_its_path() {
    let json = minimal()
        .to_string()
        .replace(r#"["a"]"#, r#"["a",["x",{"b":"?"}]]"#);
    let mut bytes = json.into_bytes();
    let at = bytes.iter().position(|byte| *byte == b'?').unwrap();
    bytes[at] = 0xff;
    let error = check(&bytes).unwrap_err().to_string();
    assert_eq!(error, "process.args[1][1].b: is not UTF-8");
    for (json, want) in [
        (&b"{\"a\xff\": 1}"[..], "\"a\u{fffd}\": is not UTF-8"),
        (b"[\"\xff\"]", "[0]: is not UTF-8"),
    ] {
        assert_eq!(check(json).unwrap_err().to_string(), want);
    }
}
