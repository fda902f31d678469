//! Fields of a spec, each seen from inside a container that the agent makes by hand (tests/containers.rs tells what these
//! tests need). docs/conformance.md names them.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use guest::{Container, Guest, process, run};
use serde_json::{Value, json};
use ttrpc::Code;

/// What `script` prints in a container whose spec `change` has changed; what it complains of, too.
async fn output(guest: &mut Guest, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut container = Container::new(id, &["sh", "-c", &format!("exec 2>&1; {script}")]);
    change(&mut container.spec);
    let (_, mut stdio) = guest.create_as(container).await.unwrap();
    guest.start_container(id).await.unwrap();
    stdio.stdout().await
}

/// Why a container is not made.
async fn refusal(guest: &mut Guest, change: impl FnOnce(&mut Value)) -> (Code, String) {
    let mut container = Container::new("refused", &["true"]);
    change(&mut container.spec);
    let refusal = guest.create_as(container).await.unwrap_err();
    guest.expect_nothing_left("refused");
    refusal
}

fn add(spec: &mut Value, pointer: &str, value: Value) {
    spec.pointer_mut(pointer)
        .unwrap()
        .as_array_mut()
        .unwrap()
        .push(value);
}

fn chown(path: &std::path::Path, id: u32) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            chown(&entry.path(), id);
        }
        std::os::unix::fs::lchown(entry.path(), Some(id), Some(id)).unwrap();
    }
    std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
}

#[test]
fn users_of_its_own() {
    run(async {
        let mut guest = Guest::start().await;
        chown(guest.rootfs.path(), 100_000);
        let script = "cat /proc/self/uid_map /proc/self/gid_map | xargs echo; id -u; id -g; cat /sys/class/net/lo/flags; \
            echo again > /dev/stdout; touch /tmp/x && echo made; read line";
        let mut container = Container::new("a", &["sh", "-c", script]);
        add(&mut container.spec, "/linux/namespaces", json!({"type": "user"}));
        container.spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        container.spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 2000}]);
        container.spec["process"]["user"] = json!({"uid": 7, "gid": 8});
        container.spec["process"]["cwd"] = json!("/tmp");
        std::fs::set_permissions(
            guest.rootfs.path().join("tmp"),
            std::os::unix::fs::PermissionsExt::from_mode(0o1777),
        )
        .unwrap();
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        for want in [
            "0 100000 1000 0 100000 2000\n",
            "7\n",
            "8\n",
            "0x9\n",
            "again\n",
            "made\n",
        ] {
            assert_eq!(stdio.line().await, want);
        }
        let made = std::fs::metadata(guest.rootfs.path().join("tmp/x")).unwrap();
        let owner = (
            std::os::unix::fs::MetadataExt::uid(&made),
            std::os::unix::fs::MetadataExt::gid(&made),
        );
        assert_eq!(owner, (100_007, 100_008));
        let (_, mut exec) = guest
            .exec("a", "e", &["sh", "-c", "id -u; echo x > /dev/stdout"])
            .await
            .unwrap();
        assert_eq!(exec.stdout().await, "0\nx\n");
    });
}

#[test]
fn users_of_its_own_in_several_ranges() {
    run(async {
        let mut guest = Guest::start().await;
        let text = output(
            &mut guest,
            "a",
            "cat /proc/self/uid_map /proc/self/gid_map | xargs echo; id -u",
            |spec| {
                add(spec, "/linux/namespaces", json!({"type": "user"}));
                spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1},
                    {"containerID": 1, "hostID": 100_001, "size": 65_535}]);
                spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65_536}]);
                spec["process"]["user"] = json!({"uid": 5, "gid": 6});
            },
        )
        .await;
        assert_eq!(text, "0 0 1 1 100001 65535 0 0 65536\n5\n");
    });
}

#[test]
fn clocks_of_its_own() {
    run(async {
        let mut guest = Guest::start().await;
        let text = output(&mut guest, "a", "cat /proc/self/timens_offsets | xargs echo", |spec| {
            add(spec, "/linux/namespaces", json!({"type": "time"}));
            spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1000, "nanosecs": 5}, "boottime": {"secs": 2000, "nanosecs": 7}});
        })
        .await;
        assert_eq!(text, "monotonic 1000 5 boottime 2000 7\n");
    });
}

#[test]
fn start_container_hooks_run_in_the_container_before_its_command() {
    run(async {
        let mut guest = Guest::start().await;
        let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["A=b", "PATH=/bin"], "timeout": 5});
        let text = output(&mut guest, "a", "cat /hook", |spec| {
            spec["hooks"] = json!({"startContainer": [hook("echo $A $0 $1 > /hook; cat > /state; test -e /bin/busybox")]});
        })
        .await;
        assert_eq!(text, "b zero one\n");
        let state: Value =
            serde_json::from_slice(&std::fs::read(guest.rootfs.path().join("state")).unwrap()).unwrap();
        assert_eq!(state["id"], "a");
        // One that fails, and one that takes too long: the command does not run.
        for (id, script) in [("b", "exit 3"), ("c", "sleep 100")] {
            let text = output(&mut guest, id, "echo ran", |spec| {
                let mut hook = hook(script);
                hook["timeout"] = json!(1);
                spec["hooks"] = json!({"startContainer": [hook]});
            })
            .await;
            assert_eq!(text, "");
            assert_ne!(guest.wait(id).await.unwrap().exit_status, 0);
        }
        let (code, text) = refusal(&mut guest, |spec| {
            spec["hooks"] = json!({"createContainer": [hook("true")]})
        })
        .await;
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.contains("hooks.createContainer[0].path: "), "{text}");
    });
}

#[test]
fn options_of_mounts() {
    run(async {
        let mut guest = Guest::start().await;
        for (index, (options, want)) in [
            (&["sync"][..], "rw,relatime rw,sync"),
            (&["dirsync", "nodev"], "rw,nodev,relatime rw,dirsync"),
            (&["lazytime"], "rw,relatime rw,lazytime"),
            (&["ro", "nosuid", "noexec"], "ro,nosuid,noexec,relatime rw"),
            (&["noatime", "nodiratime"], "rw,noatime,nodiratime rw"),
            (&["strictatime"], "rw rw"),
            (&["nosymfollow"], "rw,relatime,nosymfollow rw"),
            (&["size=64k", "mode=700"], "rw,relatime rw,size=64k,mode=700"),
            (
                &[
                    "silent",
                    "noiversion",
                    "nomand",
                    "async",
                    "defaults",
                    "rw",
                    "suid",
                    "dev",
                    "exec",
                ],
                "rw,relatime rw",
            ),
            (&["shared"], "rw,relatime shared:N rw"),
            (&["rshared"], "rw,relatime shared:N rw"),
            (&["slave"], "rw,relatime rw"),
            (&["rprivate"], "rw,relatime rw"),
            (&["runbindable"], "rw,relatime unbindable rw"),
        ]
        .into_iter()
        .enumerate()
        {
            let script = "while read a b c d place flags rest; do test $place = /m && echo $flags $rest; done < /proc/self/mountinfo; true";
            let text = output(&mut guest, &format!("c{index}"), script, |spec| {
                add(
                    spec,
                    "/mounts",
                    json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": options}),
                );
            })
            .await;
            // Flags of the mount, what it shares, " - tmpfs x ", flags of the file system.
            let words: Vec<&str> = text.split_whitespace().collect();
            let middle = words.iter().position(|word| *word == "-").unwrap();
            let mut seen = words[..middle].join(" ");
            if let Some(at) = seen.find("shared:") {
                seen.replace_range(at.., "shared:N");
            }
            let file_system: Vec<&str> = words[middle + 3]
                .split(',')
                .filter(|word| !word.starts_with("inode"))
                .collect();
            assert_eq!(format!("{seen} {}", file_system.join(",")), want, "{options:?}");
        }
        for (options, path) in [
            (&["remount"], "options[0]"),
            (&["mand"], "options[0]"),
            (&["tmpcopyup"], "options[0]"),
        ] {
            let (code, text) = refusal(&mut guest, |spec| {
                add(
                    spec,
                    "/mounts",
                    json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": options}),
                );
            })
            .await;
            assert_eq!(code, Code::INVALID_ARGUMENT);
            assert!(text.contains(path), "{text}");
        }
    });
}

#[test]
fn propagation_of_the_root() {
    run(async {
        let mut guest = Guest::start().await;
        for (index, (word, want)) in [
            ("shared", "shared"),
            ("rshared", "shared"),
            ("private", "-"),
            ("rprivate", "-"),
            ("rslave", "-"),
            ("unbindable", "unbindable"),
        ]
        .into_iter()
        .enumerate()
        {
            let script = "while read a b c d place flags shares rest; do test $place = / && echo $shares; done < /proc/self/mountinfo; true";
            let text = output(&mut guest, &format!("c{index}"), script, |spec| {
                spec["linux"]["rootfsPropagation"] = json!(word);
            })
            .await;
            assert_eq!(text.trim().split(':').next().unwrap(), want, "{word}");
        }
        let (_, text) = refusal(&mut guest, |spec| {
            spec["linux"]["rootfsPropagation"] = json!("up")
        })
        .await;
        assert!(text.contains("linux.rootfsPropagation: "), "{text}");
    });
}

#[test]
fn namespaces_of_another_container() {
    run(async {
        let mut guest = Guest::start().await;
        let mut first = Container::new("first", &["sh", "-c", "echo up; sleep 1000; true"]);
        first.spec["hostname"] = json!("pod");
        let (_, mut stdio) = guest.create_as(first).await.unwrap();
        guest.start_container("first").await.unwrap();
        assert_eq!(stdio.line().await, "up\n");
        let own = output(
            &mut guest,
            "own",
            "for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done",
            |_| {},
        )
        .await;
        let script = "for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done; cat /proc/sys/kernel/hostname; cat /proc/1/cmdline";
        let text = output(&mut guest, "second", script, |spec| {
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                if ["ipc", "uts", "pid"].contains(&namespace["type"].as_str().unwrap()) {
                    namespace["path"] = json!("container:first");
                }
            }
            spec["hostname"] = json!("renamed");
        })
        .await;
        assert!(
            text.contains("renamed\nsh\0-c\0echo up; sleep 1000; true"),
            "{text}"
        );
        for line in own.lines() {
            assert!(line.contains(":[") && !text.contains(line), "{own} {text}");
        }
        let (code, text) = refusal(&mut guest, |spec| {
            spec["linux"]["namespaces"][1]["path"] = json!("container:nobody");
        })
        .await;
        assert_eq!(
            (code, text.as_str()),
            (Code::NOT_FOUND, "container \"nobody\" not found")
        );
        guest.kill("first", 9, false).await.unwrap();
        guest.wait("first").await.unwrap();
        let (code, _) = refusal(&mut guest, |spec| {
            spec["linux"]["namespaces"][1]["path"] = json!("container:first")
        })
        .await;
        assert_eq!(code, Code::NOT_FOUND);
    });
}

#[test]
fn devices_that_the_guest_has() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "stat -c '%n %F %a %t:%T %u:%g' /dev/zwei /dev/pipe";
        let text = output(&mut guest, "a", script, |spec| {
            spec["linux"]["devices"] = json!([
                {"type": "c", "path": "/dev/zwei", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
                {"type": "p", "path": "/dev/pipe", "fileMode": 0o600}
            ]);
        })
        .await;
        assert_eq!(
            text,
            "/dev/zwei character special file 640 1:5 3:4\n/dev/pipe fifo 600 0:0 0:0\n"
        );
        for (device, want) in [
            (
                json!({"type": "c", "path": "/dev/x", "major": 240, "minor": 77}),
                "the guest has no device 240:77 for /dev/x",
            ),
            (
                json!({"type": "b", "path": "/dev/x", "major": 8, "minor": 0}),
                "linux.devices[0].type: b: ",
            ),
            (
                json!({"type": "c", "path": "/x", "major": 1, "minor": 5}),
                "is not below /dev",
            ),
        ] {
            let (code, text) = refusal(&mut guest, |spec| spec["linux"]["devices"] = json!([device])).await;
            assert_eq!(code, Code::INVALID_ARGUMENT);
            assert!(text.contains(want), "{text}");
        }
    });
}

#[test]
fn of_all_the_hosts_devices_those_that_the_guest_has() {
    run(async {
        let mut guest = Guest::start().await;
        let mut container = Container::new("a", &["sh", "-c", "cd /dev; ls zwei none sda"]);
        container.spec["linux"]["devices"] = json!([
            {"type": "c", "path": "/dev/zwei", "major": 1, "minor": 5},
            {"type": "c", "path": "/dev/none", "major": 240, "minor": 77},
            {"type": "b", "path": "/dev/sda", "major": 8, "minor": 0}
        ]);
        container.spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        let (created, mut stdio) = guest.create_as(container).await.unwrap();
        assert_eq!(created.ignored, ["linux.devices: not in this guest: /dev/none"]);
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.stdout().await, "zwei\n");
    });
}

#[test]
fn what_the_process_is() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "id -u; id -g; id -G; umask; pwd; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; \
            grep -E '^(NoNewPrivs|CapBnd|CapEff|CapPrm|CapInh|CapAmb):' /proc/self/status | xargs echo; env";
        let text = output(&mut guest, "a", script, |spec| {
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
        assert_eq!(
            text,
            "1000\n1001\n1001 5 6\n0027\n/tmp\n123\n66\n77\nCapInh: 0000000000000020 CapPrm: 0000000000000020 \
            CapEff: 0000000000000020 CapBnd: 0000000000000021 CapAmb: 0000000000000020 NoNewPrivs: 1\n\
            X=y z\nSHLVL=1\nPATH=/bin\nPWD=/tmp\nHOME=/\n"
                .replace("X=y z\nSHLVL=1\nPATH=/bin\nPWD=/tmp\nHOME=/\n", &text[text.find("NoNewPrivs: 1\n").unwrap() + 14..])
        );
        assert!(
            text.contains("\nX=y z\n") && text.contains("\nPATH=/bin\n"),
            "{text}"
        );
        let none = output(
            &mut guest,
            "b",
            "grep -E '^Cap' /proc/self/status | xargs echo",
            |spec| {
                spec["process"].as_object_mut().unwrap().remove("capabilities");
            },
        )
        .await;
        assert!(!none.contains(|c: char| ('1'..='9').contains(&c)), "{none}");
    });
}

#[test]
fn scheduling_of_the_process() {
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
            let text = output(&mut guest, id, script, |spec| {
                spec["process"]["scheduler"] = scheduler;
                spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
            })
            .await;
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[0].starts_with(want), "{id}: {text}");
            assert_eq!(lines[1], "best-effort: prio 6", "{id}");
        }
        let mut container = Container::new("f", &["sh", "-c", "cat /proc/1/stat"]);
        container.spec["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 10_000_000, "period": 20_000_000});
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("f").await.unwrap();
        assert_eq!(stdio.stdout().await.split_whitespace().nth(40), Some("6"));
    });
}

#[test]
fn cpus_of_an_exec() {
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

#[test]
fn kernel_settings_and_hidden_paths() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "cat /proc/sys/kernel/msgmax /proc/sys/kernel/hostname /proc/sys/kernel/domainname; cat /secret | wc -c; ls /hidden | wc -l; \
            touch /fixed/x; touch /x; uname -m";
        std::fs::write(guest.rootfs.path().join("secret"), "secret").unwrap();
        for directory in ["hidden", "fixed"] {
            std::fs::create_dir(guest.rootfs.path().join(directory)).unwrap();
            std::fs::write(guest.rootfs.path().join(directory).join("file"), "").unwrap();
        }
        let text = output(&mut guest, "a", script, |spec| {
            spec["hostname"] = json!("host");
            spec["domainname"] = json!("domain");
            spec["root"]["readonly"] = json!(true);
            spec["linux"]["sysctl"] = json!({"kernel.msgmax": "12345"});
            spec["linux"]["personality"] = json!({"domain": "LINUX32"});
            add(spec, "/linux/maskedPaths", json!("/secret"));
            add(spec, "/linux/maskedPaths", json!("/hidden"));
            add(spec, "/linux/readonlyPaths", json!("/fixed"));
        })
        .await;
        assert_eq!(
            text,
            "12345\nhost\ndomain\n0\n0\ntouch: /fixed/x: Read-only file system\ntouch: /x: Read-only file system\ni686\n"
        );
        let (_, text) = refusal(&mut guest, |spec| {
            spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"})
        })
        .await;
        assert!(text.contains("vm.swappiness"), "{text}");
    });
}

#[test]
fn filters_of_system_calls() {
    run(async {
        let mut guest = Guest::start().await;
        let filter = |action: &str, extra: Value| {
            let mut syscall = json!({"names": ["mkdir", "mkdirat", "no_such_call"], "action": action});
            syscall
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [syscall]})
        };
        for (id, action, extra, want) in [
            ("a", "SCMP_ACT_ERRNO", json!({}), "Operation not permitted"),
            (
                "b",
                "SCMP_ACT_ERRNO",
                json!({"errnoRet": 28}),
                "No space left on device",
            ),
            ("c", "SCMP_ACT_KILL", json!({}), "status 159"),
            ("d", "SCMP_ACT_KILL_PROCESS", json!({}), "status 159"),
            ("e", "SCMP_ACT_KILL_THREAD", json!({}), "status 159"),
            ("f", "SCMP_ACT_TRAP", json!({}), "status 159"),
            ("g", "SCMP_ACT_TRACE", json!({}), "Function not implemented"),
            ("h", "SCMP_ACT_LOG", json!({}), "status 0"),
        ] {
            let text = output(&mut guest, id, "mkdir /tmp/d-$$; echo status $?", |spec| {
                spec["linux"]["seccomp"] = filter(action, extra);
            })
            .await;
            assert!(text.contains(want), "{action}: {text}");
        }
        // Only for some arguments: chmod's second, the mode.
        for (id, op, value, two, want) in [
            ("i", "SCMP_CMP_EQ", 0o700, None, "0 1"),
            ("j", "SCMP_CMP_NE", 0o700, None, "1 0"),
            ("k", "SCMP_CMP_LT", 0o700, None, "1 0"),
            ("l", "SCMP_CMP_LE", 0o600, None, "1 0"),
            ("m", "SCMP_CMP_GE", 0o700, None, "0 1"),
            ("n", "SCMP_CMP_GT", 0o600, None, "0 1"),
            ("o", "SCMP_CMP_MASKED_EQ", 0o700, Some(0o600), "1 0"),
        ] {
            let mut arg = json!({"index": 1, "value": value, "op": op});
            if let Some(two) = two {
                // The mask comes first in the specification's words, the value second.
                arg = json!({"index": 1, "value": value, "valueTwo": two, "op": op});
            }
            let script = "touch /tmp/f; chmod 600 /tmp/f; a=$?; chmod 700 /tmp/f; echo $a $?";
            let text = output(&mut guest, id, script, |spec| {
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"], "syscalls": [
                    {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [arg]}]});
            })
            .await;
            assert_eq!(text.lines().last(), Some(want), "{op}: {text}");
        }
        let text = output(&mut guest, "p", "mkdir /tmp/q; echo $?", |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 28, "syscalls": [
                {"names": ["read", "write", "open", "openat", "close", "stat", "fstat", "lstat", "newfstatat", "execve", "exit_group", "mmap",
                    "munmap", "mprotect", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "getrandom", "getuid",
                    "geteuid", "getgid", "getegid", "getppid", "getpid", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "fork", "vfork", "clone",
                    "wait4", "dup2", "dup", "fcntl", "ioctl", "getcwd", "uname", "poll", "readlink", "prctl", "futex", "accept", "accept4", "recvfrom",
                    "recvmsg", "sendmsg", "connect", "socket", "getsockname", "access", "faccessat", "umask", "sigaltstack", "readlinkat", "dup3",
                    "capget", "capset", "close_range", "getdents64", "exit", "gettid", "tgkill", "sched_getaffinity", "madvise", "pread64", "lseek", "statx", "faccessat2", "sendto"],
                "action": "SCMP_ACT_ALLOW"}]});
        })
        .await;
        assert!(text.contains("No space left on device"), "{text}");
        let (_, text) = refusal(&mut guest, |spec| {
            spec["linux"]["seccomp"] = filter("SCMP_ACT_NOTIFY", json!({}))
        })
        .await;
        assert!(
            text.contains("linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY: "),
            "{text}"
        );
    });
}

#[test]
fn a_working_directory_that_is_missing_is_made() {
    run(async {
        let mut guest = Guest::start().await;
        let volume = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), guest.rootfs.path().join("link")).unwrap();
        for (index, cwd) in ["/new/directory", "/volume/new", "/tmp"].into_iter().enumerate() {
            let text = output(&mut guest, &format!("c{index}"), "pwd", |spec| {
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
            let (_, text) = refusal(&mut guest, |spec| spec["process"]["cwd"] = json!(cwd)).await;
            assert!(text.contains("process.cwd"), "{text}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    });
}

#[test]
fn destinations_that_leave_the_root_stay_in_it() {
    run(async {
        let mut guest = Guest::start().await;
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), guest.rootfs.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc", guest.rootfs.path().join("up")).unwrap();
        for (index, destination) in ["/up", "/link/x", "relative"].into_iter().enumerate() {
            let mut container = Container::new(&format!("c{index}"), &["true"]);
            // Without a source, too: it is a name alone.
            add(
                &mut container.spec,
                "/mounts",
                json!({"destination": destination, "type": "tmpfs"}),
            );
            // Whether it is made or refused: it is not made outside.
            let _ = guest.create_as(container).await;
        }
        assert!(std::path::Path::new("/etc/passwd").exists());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        guest.create("after", &["true"]).await.unwrap();
    });
}
