//! Exec processes, pause and resume, counters, updates of limits. As `containers.rs`, with a standalone
//! agent.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use std::io::Write as _;

use guest::container::{Container, FOREVER, process};
use guest::{Guest, run};
use serde_json::json;
use ttrpc::Code;

/// A guest with the running container `a`, whose init has run `script`.
async fn prepared(script: &str) -> Guest {
    let mut guest = Guest::start().await;
    let script = format!("{script}; echo ready; exec sleep 1000000");
    let (_, mut stdio) = guest.create("a", &["sh", "-c", &script]).await.unwrap();
    guest.start_container("a").await.unwrap();
    assert_eq!(stdio.line().await, "ready\n");
    guest
}

/// Asserts that container `a` refuses an exec process with a terminal, and names /dev/ptmx.
async fn expect_no_terminal(guest: &mut Guest) {
    let mut object = process(&["true"]);
    object["terminal"] = true.into();
    let (_, message) = guest
        .exec_as("a", "y", object, [true, true, false])
        .await
        .unwrap_err();
    assert!(message.contains("/dev/ptmx"), "{message}");
}

#[test]
fn output_and_exit_code_of_an_exec_reach_the_host_once() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        let (pid, mut stdio) = guest
            .exec("a", "x", &["sh", "-c", "cat; echo err >&2; exit 7"])
            .await
            .unwrap();
        assert!(guest.pids("a").await.unwrap().contains(&pid));
        stdio.stdin.write_all(b"in\n").unwrap();
        stdio.stdin.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stdio.stdout().await, "in\n");
        assert_eq!(stdio.stderr().await, "err\n");
        assert_eq!(guest.wait_exec("a", "x").await.unwrap().exit_status, 7);
        assert_eq!(guest.wait_exec("a", "x").await.unwrap_err().0, Code::NOT_FOUND);
        guest
            .exec("a", "x", &["true"])
            .await
            .expect("the name is free again");
        guest.kill("a", 9, false).await.unwrap();
        guest.wait("a").await.unwrap();
        guest.delete("a").await.unwrap();
        guest.expect_nothing_left("a");
    });
}

#[test]
fn an_exec_is_in_the_containers_namespaces_and_cgroup() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        let script = "for n in cgroup ipc mnt pid uts; do readlink /proc/1/ns/$n; readlink /proc/self/ns/$n; done \
            | sort -u | wc -l; cat /proc/self/cgroup; ls /proc | grep -c '^[0-9]'";
        let (_, mut stdio) = guest.exec("a", "x", &["sh", "-c", script]).await.unwrap();
        // Five different links: init and the exec process share each namespace. `0::/` is the namespace's
        // root cgroup.
        let output = stdio.stdout().await;
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.first(), Some(&"5"), "{output}");
        assert!(lines.contains(&"0::/"), "{output}");
    });
}

#[test]
fn an_exec_has_the_attributes_of_its_process_object() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        let mut object = process(&[
            "sh",
            "-c",
            "id -u; id -g; id -G; umask; echo $PWD $A $HOME; ulimit -n; \
                grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; cat /proc/self/oom_score_adj",
        ]);
        object["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [44, 45], "umask": 0o027});
        object["cwd"] = "/tmp".into();
        object["env"] = json!(["PATH=/bin", "A=b"]);
        object["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
        object["capabilities"] = json!({"bounding": ["CAP_KILL"]});
        object["noNewPrivileges"] = true.into();
        object["oomScoreAdj"] = 123.into();
        let (_, mut stdio) = guest.exec_as("a", "x", object, [true; 3]).await.unwrap();
        let output = stdio.stdout().await;
        let want = "1000\n1001\n1001 44 45\n0027\n/tmp b /\n77\n\
            CapEff:\t0000000000000000\nCapBnd:\t0000000000000020\nNoNewPrivs:\t1\n123\n";
        assert_eq!(output, want, "{}", stdio.stderr().await);
    });
}

/// An ignored SIGPIPE would be inherited, and a writer to a closed pipe would not end.
#[test]
fn no_process_ignores_sigpipe() {
    run(async {
        let script = "grep SigIgn /proc/self/status";
        let mut guest = Guest::start().await;
        let (_, mut init) = guest
            .create(
                "a",
                &["sh", "-c", "grep SigIgn /proc/self/status; exec sleep 1000000"],
            )
            .await
            .unwrap();
        guest.start_container("a").await.unwrap();
        let (_, mut exec) = guest.exec("a", "x", &["sh", "-c", script]).await.unwrap();
        for text in [init.line().await, exec.stdout().await] {
            let mask = text.trim_start_matches("SigIgn:").trim();
            let ignored = u64::from_str_radix(mask, 16).unwrap();
            let pipe = 1 << (libc::SIGPIPE - 1);
            assert_eq!(ignored & pipe, 0, "{text}");
        }
    });
}

#[test]
fn a_refused_exec_has_a_reason_and_leaves_nothing() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        for (change, code, want) in [
            (
                json!({"args": ["no-such"]}),
                Code::INVALID_ARGUMENT,
                "exec: \"no-such\": executable file not found in $PATH",
            ),
            (json!({"args": []}), Code::INVALID_ARGUMENT, "process.args"),
            (
                json!({"cwd": "/no/such"}),
                Code::INTERNAL,
                "chdir to cwd (\"/no/such\"): no such file or directory",
            ),
            (
                json!({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 8, "hard": 7}]}),
                Code::INTERNAL,
                "RLIMIT_NOFILE",
            ),
        ] {
            let mut object = process(&["true"]);
            object
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            let (got, message) = guest.exec_as("a", "x", object, [true; 3]).await.unwrap_err();
            assert!(got == code && message.contains(want), "{got:?} {message}");
        }
        assert_eq!(guest.pids("a").await.unwrap().len(), 1);
        let nobody = guest.exec("b", "x", &["true"]).await.unwrap_err();
        assert_eq!(nobody.0, Code::NOT_FOUND);
        guest.exec("a", "x", FOREVER).await.unwrap();
        assert_eq!(
            guest.exec("a", "x", FOREVER).await.unwrap_err().0,
            Code::ALREADY_EXISTS
        );
        assert_eq!(
            guest.exec("a", "", FOREVER).await.unwrap_err().0,
            Code::ALREADY_EXISTS
        );
    });
}

#[test]
fn an_exec_may_precede_start_and_is_killed_with_init() {
    run(async {
        let mut guest = Guest::start().await;
        guest.create("a", FOREVER).await.unwrap();
        guest.exec("a", "x", FOREVER).await.unwrap();
        guest.start_container("a").await.unwrap();
        guest.exec("a", "y", FOREVER).await.unwrap();
        guest.kill_exec("a", "y", 15).await.unwrap();
        assert_eq!(guest.wait_exec("a", "y").await.unwrap().exit_status, 143);
        guest.kill("a", 9, false).await.unwrap();
        assert_eq!(guest.wait_exec("a", "x").await.unwrap().exit_status, 137);
        guest.wait("a").await.unwrap();
        assert_eq!(
            guest.exec("a", "z", FOREVER).await.unwrap_err().0,
            Code::FAILED_PRECONDITION
        );
    });
}

#[test]
fn sequential_execs_leave_no_process() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        for round in 0..30 {
            let status = (round % 5).to_string();
            let name = format!("x{round}");
            guest
                .exec("a", &name, &["sh", "-c", "exit $0", &status])
                .await
                .unwrap();
            assert_eq!(guest.wait_exec("a", &name).await.unwrap().exit_status, round % 5);
        }
        assert_eq!(guest.pids("a").await.unwrap().len(), 1);
    });
}

#[test]
fn a_paused_container_is_frozen_and_can_be_killed() {
    run(async {
        let mut guest = Guest::start().await;
        let (_, mut stdio) = guest
            .create("a", &["sh", "-c", "while read line; do echo $line; done"])
            .await
            .unwrap();
        assert_eq!(guest.pause("a").await.unwrap_err().0, Code::FAILED_PRECONDITION);
        guest.start_container("a").await.unwrap();
        guest.pause("a").await.unwrap();
        assert_eq!(guest.pause("a").await.unwrap_err().0, Code::FAILED_PRECONDITION);
        assert_eq!(
            guest.exec("a", "x", &["true"]).await.unwrap_err().0,
            Code::FAILED_PRECONDITION
        );
        stdio.stdin.write_all(b"one\n").unwrap();
        guest.resume("a").await.unwrap();
        assert_eq!(stdio.line().await, "one\n");
        guest.pause("a").await.unwrap();
        guest.kill("a", 9, false).await.unwrap();
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 137);
    });
}

#[test]
fn stats_has_counters_and_delete_ends_wait_oom() {
    run(async {
        let mut guest = Guest::start().await;
        guest.create("a", FOREVER).await.unwrap();
        let files = guest.stats("a").await.unwrap().files;
        assert!(files.contains_key("cgroup.events"), "{files:?}");
        let (ended, ()) = tokio::join!(guest.wait_oom("a", 0), async {
            guest.delete("a").await.map(drop).unwrap()
        });
        assert_eq!(ended.unwrap_err().0, Code::NOT_FOUND);
    });
}

#[test]
fn update_applies_limits_or_refuses_them_by_field() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        guest
            .update(
                "a",
                json!({"unified": {"cgroup.max.depth": "3"}, "devices": [{"allow": true}]}),
            )
            .await
            .unwrap();
        let (_, mut stdio) = guest
            .exec("a", "x", &["cat", "/sys/fs/cgroup/cgroup.max.depth"])
            .await
            .unwrap();
        assert_eq!(stdio.stdout().await, "3\n");
        for (resources, field) in [
            (json!({"unified": {"../x": "3"}}), "linux.resources.unified"),
            (json!({"blockIO": {"weight": 10}}), "linux.resources.blockIO"),
            (json!("x"), "linux.resources"),
        ] {
            let (code, message) = guest.update("a", resources).await.unwrap_err();
            assert!(
                code == Code::INVALID_ARGUMENT && message.contains(field),
                "{code:?} {message}"
            );
        }
        guest.kill("a", 9, false).await.unwrap();
        guest.wait("a").await.unwrap();
        assert_eq!(
            guest.update("a", json!({})).await.unwrap_err().0,
            Code::FAILED_PRECONDITION
        );
    });
}

#[test]
fn fifos_in_the_container_do_not_block_an_exec() {
    run(async {
        let mut guest = prepared("rm -f /etc/passwd /dev/ptmx; mkfifo /etc/passwd /dev/ptmx").await;
        let (_, mut stdio) = guest.exec("a", "x", &["sh", "-c", "echo $HOME"]).await.unwrap();
        assert_eq!(stdio.stdout().await, "/\n");
        expect_no_terminal(&mut guest).await;
    });
}

/// With noNewPrivileges, the seccomp filter is loaded right before execve and need not allow the runtime's
/// calls.
#[test]
fn a_seccomp_filter_need_not_allow_the_runtimes_calls() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "echo out; mkdir /x || echo denied; read line";
        let mut container = Container::new("a", &["sh", "-c", script]);
        container.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{
                "names": [
                    "accept", "accept4", "recvfrom", "close", "setsid", "umask", "mkdir", "capset", "setresuid"
                ],
                "action": "SCMP_ACT_ERRNO", "errnoRet": 38
            }]
        });
        let (_, mut init) = guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(init.line().await, "out\n");
        assert_eq!(init.line().await, "denied\n");
        let (_, mut exec) = guest
            .exec("a", "x", &["sh", "-c", "mkdir /y || echo denied"])
            .await
            .unwrap();
        assert_eq!(exec.stdout().await, "denied\n");
    });
}

/// The child that becomes an exec process must not write to another file that the container has put at
/// /dev/null.
#[test]
fn a_replaced_dev_null_is_not_written_to() {
    run(async {
        let mut guest = prepared("rm /dev/null; touch /file; ln -s /file /dev/null").await;
        let (_, mut stdio) = guest.exec("a", "x", &["echo", "out"]).await.unwrap();
        assert_eq!(stdio.stdout().await, "out\n");
        let (_, mut stdio) = guest
            .exec_as(
                "a",
                "y",
                process(&["sh", "-c", "echo err >&2"]),
                [false, false, true],
            )
            .await
            .unwrap();
        assert_eq!(stdio.stderr().await, "err\n");
        assert_eq!(std::fs::read(guest.rootfs.path().join("file")).unwrap(), b"");
    });
}

/// An exec process has only its standard streams open, already while it resolves paths of the container.
#[test]
fn an_exec_inherits_no_descriptor_of_the_agent() {
    run(async {
        let mut guest = prepared("rm /dev/ptmx; ln -s /proc/self/fd/4/../ptmx /dev/ptmx").await;
        let (_, mut stdio) = guest.exec("a", "x", &["ls", "/proc/self/fd"]).await.unwrap();
        assert_eq!(
            stdio.stdout().await,
            "0\n1\n2\n3\n",
            "3 is ls's own descriptor of the directory"
        );
        expect_no_terminal(&mut guest).await;
    });
}

#[test]
fn the_error_for_a_very_long_command_is_short() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        let name = "n".repeat(100_000);
        let (code, message) = guest.exec("a", "x", &[&name]).await.unwrap_err();
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(
            message.len() < 5000 && message.contains("nnnn"),
            "{}",
            message.len()
        );
    });
}

#[test]
fn each_container_has_a_session_keyring_that_its_execs_join() {
    run(async {
        let mut guest = Guest::start().await;
        for id in ["keys-one", "keys-two"] {
            let mut container = Container::new(id, FOREVER);
            container.spec["linux"]["maskedPaths"] = json!([]);
            guest.create_as(container).await.unwrap();
            guest.start_container(id).await.unwrap();
        }
        // The second exec shows whether the first one has made another keyring.
        let mut keyrings = Vec::new();
        for name in ["x", "y"] {
            let command = ["grep", "_ses.keys-", "/proc/keys"];
            let (_, mut stdio) = guest.exec("keys-two", name, &command).await.unwrap();
            let listed = stdio.stdout().await;
            keyrings = listed
                .lines()
                .map(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    fields[4..].join(" ")
                })
                .collect();
        }
        keyrings.sort();
        assert_eq!(
            keyrings,
            [
                "3f1b0000 0 0 keyring _ses.keys-one: empty",
                "3f1b0000 0 0 keyring _ses.keys-two: empty"
            ]
        );
    });
}
