//! Fields of a spec that concern a container's process: user, capabilities, limits, scheduling, seccomp
//! filters, working directory. As `fields.rs`, with a standalone agent.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use guest::container::{Container, add, process};
use guest::{Guest, run};
use serde_json::{Value, json};

#[test]
fn process_attributes() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "id -u; id -g; id -G; umask; pwd; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; \
            grep -E '^(NoNewPrivs|CapBnd|CapEff|CapPrm|CapInh|CapAmb):' /proc/self/status | xargs echo; env";
        let text = guest.output("a", script, |spec| {
            let process = &mut spec["process"];
            process["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 6]});
            process["cwd"] = json!("/tmp");
            process["env"] = json!(["PATH=/bin", "X=y z"]);
            process["oomScoreAdj"] = json!(123);
            process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 66}]);
            process["noNewPrivileges"] = json!(true);
            process["capabilities"] = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"],
                "inheritable": ["CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
        })
        .await;
        let (attributes, environment) = text.split_once("NoNewPrivs: 1\n").unwrap();
        assert_eq!(
            attributes,
            "1000\n1001\n1001 5 6\n0027\n/tmp\n123\n66\n77\nCapInh: 0000000000000020 CapPrm: 0000000000000020 \
            CapEff: 0000000000000020 CapBnd: 0000000000000021 CapAmb: 0000000000000020 "
        );
        let variables: Vec<&str> = environment.lines().collect();
        for variable in ["X=y z", "PATH=/bin", "HOME=/"] {
            assert!(variables.contains(&variable), "{environment}");
        }
        let none = guest
            .output("b", "grep -E '^Cap' /proc/self/status | xargs echo", |spec| {
                spec["process"].as_object_mut().unwrap().remove("capabilities");
            })
            .await;
        assert!(!none.contains(|c: char| ('1'..='9').contains(&c)), "{none}");
    });
}

#[test]
fn process_scheduling() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "set -- $(cat /proc/self/stat); echo ${40} ${41} ${19}; ionice -p $$";
        for (id, scheduler, want) in [
            ("a", json!({"policy": "SCHED_BATCH", "nice": 7}), "0 3 7"),
            ("b", json!({"policy": "SCHED_FIFO", "priority": 5}), "5 1"),
            (
                "c",
                json!({"policy": "SCHED_RR", "priority": 6, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
                "0 0",
            ),
            ("d", json!({"policy": "SCHED_IDLE"}), "0 5"),
            ("e", json!({"policy": "SCHED_OTHER", "nice": -3}), "0 0 -3"),
        ] {
            let text = guest
                .output(id, script, |spec| {
                    spec["process"]["scheduler"] = scheduler;
                    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
                })
                .await;
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[0].starts_with(want), "{id}: {text}");
            assert_eq!(lines[1], "best-effort: prio 6", "{id}");
        }
        let mut container = Container::new("f", &["sh", "-c", "cat /proc/1/stat"]);
        container.spec["process"]["scheduler"] = json!({
            "policy": "SCHED_DEADLINE",
            "runtime": 1_000_000,
            "deadline": 10_000_000,
            "period": 20_000_000
        });
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("f").await.unwrap();
        assert_eq!(stdio.stdout().await.split_whitespace().nth(40), Some("6"));
    });
}

#[test]
fn cpu_affinity_of_an_exec_process() {
    run(async {
        let mut guest = Guest::start().await;
        let (_, mut stdio) = guest
            .create("a", &["sh", "-c", "echo up; sleep 1000"])
            .await
            .unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.line().await, "up\n");
        for (exec_id, affinity, want) in [
            ("x", json!({"final": "0"}), "0\n"),
            ("y", json!({"initial": "1"}), "1\n"),
        ] {
            let mut wanted = process(&["sh", "-c", "grep Cpus_allowed_list /proc/self/status | cut -f 2"]);
            wanted["execCPUAffinity"] = affinity;
            let (_, mut exec) = guest.exec_as("a", exec_id, wanted, [true; 3]).await.unwrap();
            assert_eq!(exec.stdout().await, want);
        }
    });
}

/// A seccomp profile that allows everything but mkdir, for which it takes `action`; `extra` are more keys of
/// that rule.
fn mkdir_profile(action: &str, extra: &Value) -> Value {
    let mut rule = json!({"names": ["mkdir", "mkdirat", "no_such_call"], "action": action});
    rule.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

#[test]
fn seccomp_actions() {
    run(async {
        let mut guest = Guest::start().await;
        let none = json!({});
        let enospc = json!({"errnoRet": 28});
        for (id, action, extra, want) in [
            ("a", "SCMP_ACT_ERRNO", &none, "Operation not permitted"),
            ("b", "SCMP_ACT_ERRNO", &enospc, "No space left on device"),
            ("c", "SCMP_ACT_KILL", &none, "status 159"),
            ("d", "SCMP_ACT_KILL_PROCESS", &none, "status 159"),
            ("e", "SCMP_ACT_KILL_THREAD", &none, "status 159"),
            ("f", "SCMP_ACT_TRAP", &none, "status 159"),
            ("g", "SCMP_ACT_TRACE", &none, "Function not implemented"),
            ("h", "SCMP_ACT_LOG", &none, "status 0"),
        ] {
            let text = guest
                .output(id, "mkdir /tmp/d-$$; echo status $?", |spec| {
                    spec["linux"]["seccomp"] = mkdir_profile(action, extra);
                })
                .await;
            assert!(text.contains(want), "{action}: {text}");
        }
        let (_, text) = guest
            .refusal(|spec| spec["linux"]["seccomp"] = mkdir_profile("SCMP_ACT_NOTIFY", &none))
            .await;
        assert!(
            text.contains("linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY: "),
            "{text}"
        );
    });
}

#[test]
fn seccomp_argument_conditions_and_flags() {
    run(async {
        let mut guest = Guest::start().await;
        // The condition is on chmod's second argument, the mode. `want` has the statuses of mode 600 and mode
        // 700.
        for (id, op, value, value_two, want) in [
            ("i", "SCMP_CMP_EQ", 0o700, None, "0 1"),
            ("j", "SCMP_CMP_NE", 0o700, None, "1 0"),
            ("k", "SCMP_CMP_LT", 0o700, None, "1 0"),
            ("l", "SCMP_CMP_LE", 0o600, None, "1 0"),
            ("m", "SCMP_CMP_GE", 0o700, None, "0 1"),
            ("n", "SCMP_CMP_GT", 0o600, None, "0 1"),
            // Here `value` is the mask, and `valueTwo` the value compared with.
            ("o", "SCMP_CMP_MASKED_EQ", 0o700, Some(0o600), "1 0"),
        ] {
            let mut arg = json!({"index": 1, "value": value, "op": op});
            if let Some(value_two) = value_two {
                arg["valueTwo"] = json!(value_two);
            }
            let script = "touch /tmp/f; chmod 600 /tmp/f; a=$?; chmod 700 /tmp/f; echo $a $?";
            let text = guest
                .output(id, script, |spec| {
                    spec["linux"]["seccomp"] = json!({
                        "defaultAction": "SCMP_ACT_ALLOW",
                        "flags": [
                            "SECCOMP_FILTER_FLAG_LOG",
                            "SECCOMP_FILTER_FLAG_TSYNC",
                            "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
                        ],
                        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [arg]}]
                    });
                })
                .await;
            assert_eq!(text.lines().last(), Some(want), "{op}: {text}");
        }
    });
}

/// The system calls that the agent's child and busybox's sh make, without mkdir.
const CALLS_OF_A_SHELL: &str = "\
    read write open openat close stat fstat lstat newfstatat execve exit_group mmap munmap mprotect brk \
    arch_prctl set_tid_address set_robust_list rseq prlimit64 getrandom getuid geteuid getgid getegid \
    getppid getpid rt_sigaction rt_sigprocmask rt_sigreturn fork vfork clone wait4 dup2 dup fcntl ioctl \
    getcwd uname poll readlink prctl futex accept accept4 recvfrom recvmsg sendmsg connect socket \
    getsockname access faccessat umask sigaltstack readlinkat dup3 capget capset close_range getdents64 \
    exit gettid tgkill sched_getaffinity madvise pread64 lseek statx faccessat2 sendto";

#[test]
fn seccomp_default_action() {
    run(async {
        let mut guest = Guest::start().await;
        let allowed: Vec<&str> = CALLS_OF_A_SHELL.split_whitespace().collect();
        let text = guest
            .output("p", "mkdir /tmp/q; echo $?", |spec| {
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "defaultErrnoRet": 28,
                    "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}]
                });
            })
            .await;
        assert!(text.contains("No space left on device"), "{text}");
    });
}

#[test]
fn a_missing_working_directory_is_created() {
    run(async {
        let mut guest = Guest::start().await;
        let volume = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), guest.rootfs.path().join("link")).unwrap();
        for (index, cwd) in ["/new/directory", "/volume/new", "/tmp"].into_iter().enumerate() {
            let text = guest.output(&format!("c{index}"), "pwd", |spec| {
                let source = volume.path().to_str().unwrap();
                add(
                    spec,
                    "/mounts",
                    json!({"destination": "/volume", "type": "bind", "source": source, "options": ["rbind"]}),
                );
                spec["process"]["cwd"] = json!(cwd);
                spec["root"]["readonly"] = json!(true);
            })
            .await;
            assert_eq!(text, format!("{cwd}\n"));
        }
        assert!(guest.rootfs.path().join("new/directory").is_dir() && volume.path().join("new").is_dir());
        for cwd in ["/etc/passwd/x", "/link/new"] {
            let (_, text) = guest.refusal(|spec| spec["process"]["cwd"] = json!(cwd)).await;
            assert!(text.contains("process.cwd"), "{text}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    });
}
