//! Hooks that are shell scripts, run in a temporary bundle.

use super::*;
use serde_json::json;

fn parse(bundle: &Path, hooks: Value) -> Result<Hooks, Invalid> {
    let spec = json!({"ociVersion": "1.2.0", "annotations": {"k": "v"}, "hooks": hooks});
    Hooks::parse("a", bundle, &spec)
}

fn script(text: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["hook-name", "-c", text], "env": ["A=b c", "PATH=/usr/bin:/bin"]})
}

#[tokio::test]
async fn a_hook_gets_the_state_its_arguments_and_its_environment() {
    let bundle = tempfile::tempdir().unwrap();
    let text = "cat > state; echo \"$0|$A|$HOME|$(pwd)\" > arguments";
    for (point, status, pid) in [
        (Point::Prestart, "creating", json!(7)),
        (Point::CreateRuntime, "creating", json!(7)),
        (Point::Poststart, "running", json!(7)),
        (Point::Poststop, "stopped", Value::Null),
    ] {
        let hooks = parse(bundle.path(), json!({point.name(): [script(text)]})).unwrap();
        assert!(hooks.has(point));
        hooks.run(point, 7).await.unwrap();
        let state: Value =
            serde_json::from_slice(&std::fs::read(bundle.path().join("state")).unwrap()).unwrap();
        assert_eq!(
            (
                &state["ociVersion"],
                &state["id"],
                &state["status"],
                &state["pid"]
            ),
            (&json!("1.2.0"), &json!("a"), &json!(status), &pid)
        );
        assert_eq!(state["bundle"], json!(bundle.path()));
        assert_eq!(state["annotations"], json!({"k": "v"}));
        let arguments = std::fs::read_to_string(bundle.path().join("arguments")).unwrap();
        assert_eq!(arguments, format!("hook-name|b c||{}\n", bundle.path().display()));
    }
}

#[tokio::test]
async fn the_first_failing_hook_is_reported_with_its_output() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = parse(
        bundle.path(),
        json!({"createRuntime": [
            script("echo one > ran"), script("echo no luck >&2; exit 3"), script("echo three > ran")
        ]}),
    )
    .unwrap();
    let run = hooks.run(Point::CreateRuntime, 7).await;
    let message = run.unwrap_err().to_string();
    assert_eq!(
        message,
        "hooks.createRuntime[1] /bin/sh: exited with 3; output: no luck"
    );
    assert_eq!(
        std::fs::read_to_string(bundle.path().join("ran")).unwrap(),
        "one\n"
    );
    hooks.run_all(Point::CreateRuntime, 7).await;
    assert_eq!(
        std::fs::read_to_string(bundle.path().join("ran")).unwrap(),
        "three\n"
    );
}

#[tokio::test]
async fn a_late_hook_is_killed_and_a_hook_s_children_are_not_waited_for() {
    let bundle = tempfile::tempdir().unwrap();
    let mut slow = script("echo $$ > pid; echo slow; exec sleep 100");
    slow["timeout"] = json!(1);
    let hooks = parse(
        bundle.path(),
        json!({
            "prestart": [slow],
            "poststart": [script("kill -9 $$")],
            "poststop": [script("sleep 100 & echo $! > pid"), script("yes | head -c 1000000")]
        }),
    )
    .unwrap();
    let late = hooks.run(Point::Prestart, 7).await.unwrap_err().to_string();
    assert!(late.contains("not done within 1 s; output: slow"), "{late}");
    let pid = std::fs::read_to_string(bundle.path().join("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "it still runs");
    let killed = hooks.run(Point::Poststart, 7).await.unwrap_err().to_string();
    assert!(killed.contains("signal 9"), "{killed}");
    let begun = std::time::Instant::now();
    hooks.run(Point::Poststop, 7).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(50));
    let pid = std::fs::read_to_string(bundle.path().join("pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn invalid_fields_are_refused_by_path() {
    let bundle = Path::new("/b");
    let none = parse(bundle, Value::Null).unwrap();
    assert_eq!(none.lists, Lists::default());
    let guest = json!({"startContainer": [{"path": "relative"}], "prestart": null});
    assert_eq!(parse(bundle, guest).unwrap(), none);
    for (hooks, path) in [
        (
            json!({"prestart": [{"path": "/a"}, {"path": "a"}]}),
            "hooks.prestart[1].path",
        ),
        (
            json!({"poststop": [{"path": "/a", "timeout": 0}]}),
            "hooks.poststop[0].timeout",
        ),
        (json!({"poststop": [{"path": "/a", "timeout": -1}]}), "hooks"),
        (
            json!({"createRuntime": [{"path": "/a", "args": ["\u{0}"]}]}),
            "hooks.createRuntime[0].args",
        ),
        (
            json!({"createRuntime": [{"path": "/a", "env": ["A=\u{0}"]}]}),
            "hooks.createRuntime[0].env",
        ),
        (json!({"poststart": {}}), "hooks"),
        (json!([]), "hooks"),
        (json!({"poststart": [{}]}), "hooks"),
    ] {
        assert_eq!(parse(bundle, hooks.clone()).unwrap_err().path, path, "{hooks}");
    }
    let missing = parse(bundle, json!({"poststart": [{"path": "/no/such/hook"}]})).unwrap();
    assert!(missing.has(Point::Poststart) && !missing.has(Point::Poststop));
}
