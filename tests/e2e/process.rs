//! What a process finds: environment, working directory, arguments, user, limits of its device cgroup.

use anyhow::{Result, ensure};
use nacre_tests::containerd::bundle::Bundle;
use serde_json::json;

use crate::{Test, core, test};
use nacre_tests::containerd::ctr::{Run, fresh_id};

pub const TESTS: &[Test] = &[
    core("env, cwd and args arrive", process_fields),
    core("uid, gid, additional gids and umask arrive", user),
    test("hostname, rlimits and capabilities are the spec's", identity),
    test("memory and pids limits are set in the guest", limits),
    test(
        "a device that the spec does not allow can't be opened",
        device_rules,
    ),
];

fn process_fields() -> Result<()> {
    let script = r#"echo "$GREETING|$(pwd)|$1|$2""#;
    let run = Run {
        flags: &["--env", "GREETING=hello world", "--cwd", "/tmp"],
        command: &["sh", "-c", script, "sh", "first arg", "sécond"],
        ..Run::default()
    };
    let output = run.finish(&fresh_id("fields"))?.success()?;
    ensure!(
        output.trim_end() == "hello world|/tmp|first arg|sécond",
        "got {output:?}"
    );
    Ok(())
}

/// Not every ctr has a flag for the user: the specification is given whole.
fn user() -> Result<()> {
    let script = "for o in -u -g -G; do id $o; done; umask";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        spec["process"]["user"] =
            json!({"uid": 1000, "gid": 65534, "additionalGids": [44, 100], "umask": 0o027});
    })?;
    let output = bundle.finish("user")?.success()?;
    ensure!(output == "1000\n65534\n65534 44 100\n0027\n", "got {output:?}");
    Ok(())
}

fn identity() -> Result<()> {
    let script = "ulimit -n; grep -E 'CapEff|NoNewPrivs' /proc/self/status; ls /proc | grep -c '^[0-9]'";
    let run = Run {
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let output = run.finish(&fresh_id("identity"))?.success()?;
    let lines: Vec<&str> = output.lines().collect();
    ensure!(lines.first() == Some(&"1024"), "RLIMIT_NOFILE: {output}");
    // containerd's default set.
    ensure!(
        output.contains("CapEff:\t00000000a80425fb"),
        "capabilities: {output}"
    );
    ensure!(output.contains("NoNewPrivs:\t1"), "no_new_privs: {output}");
    Ok(())
}

fn limits() -> Result<()> {
    let script = "cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let run = Run {
        flags: &[
            "--mount",
            "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev",
            "--memory-limit",
            "67108864",
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
        ],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let output = run.finish(&fresh_id("limits"))?.success()?;
    ensure!(
        output.contains("67108864") && output.contains("50000 100000"),
        "limits: {output}"
    );
    Ok(())
}

fn device_rules() -> Result<()> {
    let script = "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg; echo status $?; head -c 1 /dev/zero | wc -c";
    let run = Run {
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let output = run.finish(&fresh_id("devices"))?;
    ensure!(output.stderr.contains("Operation not permitted"), "{output:?}");
    ensure!(
        output.text().contains("status 1") && output.text().trim_end().ends_with('1'),
        "{output:?}"
    );
    Ok(())
}
