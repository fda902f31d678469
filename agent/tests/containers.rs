//! The life of a container: a standalone agent, in namespaces of its own, creates real containers from a
//! busybox root file system. The agent is the one of this build, or the program that NACRE_AGENT names, such
//! as the static one of a guest image. The tests need root and a static `/bin/busybox` (Debian:
//! busybox-static). They run without a VM, and without limits of CPU or memory, because cgroup2 here may have
//! no controllers.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use std::io::{Read as _, Write as _};

use guest::container::Container;
use guest::{Guest, run};
use ttrpc::Code;

#[test]
fn output_and_exit_code_reach_the_host() {
    run(async {
        let mut guest = Guest::start().await;
        let (created, mut stdio) = guest
            .create("a", &["sh", "-c", "echo out; echo err >&2; exit 7"])
            .await
            .unwrap();
        assert!(created.pid > 1);
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.stdout().await, "out\n");
        assert_eq!(stdio.stderr().await, "err\n");
        let exit = guest.wait("a").await.unwrap();
        assert_eq!(exit.exit_status, 7);
        assert!(exit.exited_at_ns > 1_000_000_000_000_000_000);
        assert_eq!(guest.wait("a").await.unwrap(), exit, "asked again");
        guest.delete("a").await.unwrap();
        assert_eq!(guest.wait("a").await.unwrap_err().0, Code::NOT_FOUND);
        guest.expect_nothing_left("a");
        assert!(guest.disconnect().await.success());
    });
}

#[test]
fn the_command_does_not_run_before_start() {
    run(async {
        let mut guest = Guest::start().await;
        guest.create("a", &["sh", "-c", "touch /started"]).await.unwrap();
        assert!(!guest.rootfs.path().join("started").exists());
        guest.start_container("a").await.unwrap();
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
        assert!(guest.rootfs.path().join("started").exists());
        assert_eq!(
            guest.start_container("a").await.unwrap_err().0,
            Code::FAILED_PRECONDITION
        );
    });
}

#[test]
fn input_ends_with_the_hosts_stream() {
    run(async {
        let mut guest = Guest::start().await;
        let (_, mut stdio) = guest.create("a", &["sh", "-c", "cat; echo end"]).await.unwrap();
        guest.start_container("a").await.unwrap();
        stdio.stdin.write_all(b"some input\n").unwrap();
        stdio.stdin.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stdio.stdout().await, "some input\nend\n");
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
    });
}

#[test]
fn the_process_may_open_its_streams_by_name() {
    run(async {
        let mut guest = Guest::start().await;
        let command = [
            "sh",
            "-c",
            "echo out > /dev/stdout; echo err > /dev/stderr; id -u",
        ];
        let mut container = Container::new("a", &command);
        container.spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.stdout().await, "out\n1000\n");
        assert_eq!(stdio.stderr().await, "err\n");
    });
}

#[test]
fn unwanted_streams_are_dev_null() {
    run(async {
        let mut guest = Guest::start().await;
        let mut container = Container::new("a", &["sh", "-c", "cat; echo out; echo err >&2"]);
        container.streams = [false; 3];
        guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
    });
}

#[test]
fn a_command_that_cannot_be_executed_fails_in_create() {
    run(async {
        let mut guest = Guest::start().await;
        for (command, text) in [
            (
                "no-such-command",
                "exec: \"no-such-command\": executable file not found in $PATH",
            ),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
            (
                "/no/such",
                "exec: \"/no/such\": stat /no/such: no such file or directory",
            ),
            ("/etc", "exec: \"/etc\": is a directory"),
        ] {
            let error = guest.create("a", &[command]).await.unwrap_err();
            assert_eq!(error, (Code::INVALID_ARGUMENT, text.to_owned()));
            guest.expect_nothing_left("a");
        }
        guest.create("a", &["true"]).await.unwrap();
    });
}

#[test]
fn a_mount_that_fails_is_named() {
    run(async {
        let mut guest = Guest::start().await;
        let mut container = Container::new("a", &["true"]);
        let mounts = container.spec["mounts"].as_array_mut().unwrap();
        mounts.push(serde_json::json!({
            "destination": "/data",
            "type": "bind",
            "source": "/no/such/source",
            "options": ["rbind"]
        }));
        let (code, text) = guest.create_as(container).await.unwrap_err();
        assert_eq!(code, Code::INTERNAL);
        assert!(text.contains("/no/such/source"), "{text}");
        guest.expect_nothing_left("a");
    });
}

#[test]
fn signals_reach_init_or_are_refused() {
    run(async {
        let mut guest = Guest::start().await;
        guest.create("a", &["true"]).await.unwrap();
        let (_, mut stdio) = guest
            .create(
                "b",
                &[
                    "sh",
                    "-c",
                    "trap 'exit 43' TERM; echo up; while :; do sleep 0.05; done",
                ],
            )
            .await
            .unwrap();
        guest.start_container("b").await.unwrap();
        assert_eq!(stdio.line().await, "up\n");
        assert_eq!(guest.delete("b").await.unwrap_err().0, Code::FAILED_PRECONDITION);
        guest.kill("b", 15, false).await.unwrap();
        assert_eq!(guest.wait("b").await.unwrap().exit_status, 43);
        assert_eq!(
            guest.kill("b", 9, false).await.unwrap_err(),
            (Code::NOT_FOUND, "process already finished".to_owned())
        );
        assert_eq!(guest.kill("c", 9, false).await.unwrap_err().0, Code::NOT_FOUND);
        assert_eq!(
            guest.kill("a", 900, false).await.unwrap_err().0,
            Code::INVALID_ARGUMENT
        );
    });
}

#[test]
fn sigkill_ends_all_processes_of_a_container() {
    run(async {
        let mut guest = Guest::start().await;
        for (id, all) in [("a", false), ("b", true)] {
            let (_, mut stdio) = guest
                .create(id, &["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"])
                .await
                .unwrap();
            guest.start_container(id).await.unwrap();
            assert_eq!(stdio.line().await, "up\n");
            assert_eq!(guest.pids(id).await.unwrap().len(), 3);
            guest.kill(id, 9, all).await.unwrap();
            assert_eq!(guest.wait(id).await.unwrap().exit_status, 137);
            guest.delete(id).await.unwrap();
            guest.expect_nothing_left(id);
        }
    });
}

#[test]
fn a_created_container_can_be_deleted() {
    run(async {
        let mut guest = Guest::start().await;
        guest.create("a", &["sleep", "1000"]).await.unwrap();
        guest.delete("a").await.unwrap();
        guest.expect_nothing_left("a");
        guest.create("a", &["true"]).await.unwrap();
    });
}

#[test]
fn duplicate_and_invalid_ids_are_refused() {
    run(async {
        let mut guest = Guest::start().await;
        guest.create("a", &["true"]).await.unwrap();
        assert_eq!(
            guest.create("a", &["true"]).await.unwrap_err().0,
            Code::ALREADY_EXISTS
        );
        assert_eq!(
            guest.create("../a", &["true"]).await.unwrap_err().0,
            Code::INVALID_ARGUMENT
        );
    });
}

#[test]
fn only_allowed_devices_can_be_used() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "mknod /tmp/fuse c 10 229 && true < /tmp/fuse; echo status $?; \
            head -c 2 /dev/zero | wc -c; head -c 2 /dev/urandom | wc -c; echo x > /dev/null; ls /dev | sort | xargs echo";
        let (_, mut stdio) = guest.create("a", &["sh", "-c", script]).await.unwrap();
        guest.start_container("a").await.unwrap();
        let output = stdio.stdout().await;
        let kcore = if std::path::Path::new("/proc/kcore").exists() {
            "kcore "
        } else {
            ""
        };
        let devices =
            format!("fd full {kcore}mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n");
        assert_eq!(output, format!("status 1\n2\n2\n{devices}"));
        assert!(stdio.stderr().await.contains("Operation not permitted"));
    });
}

#[test]
fn the_loopback_device_is_up_in_a_network_namespace() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_unprivileged_port_start";
        let mut container = Container::new("a", &["sh", "-c", script]);
        container.spec["linux"]["sysctl"] = serde_json::json!({"net.ipv4.ip_unprivileged_port_start": "81"});
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert!(stdio.stdout().await.starts_with("0x9\n81\n"));
    });
}

#[test]
fn setup_refuses_another_build() {
    run(async {
        let guest = Guest::start().await;
        let answer = guest.setup(nacre_protocol::BUILD_ID).await.unwrap();
        assert_eq!(answer.build_id, nacre_protocol::BUILD_ID);
        assert!(!answer.kernel_release.is_empty());
        assert!(0 < answer.init_started_us && answer.init_started_us < answer.dialed_us);
        let (code, text) = guest.setup("other").await.unwrap_err();
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert!(
            text.contains("other") && text.contains(nacre_protocol::BUILD_ID),
            "{text}"
        );
    });
}

#[test]
fn the_agent_exits_when_the_host_disconnects() {
    run(async {
        let guest = Guest::start().await;
        assert!(guest.disconnect().await.success());
    });
}

#[test]
fn megabytes_arrive_unchanged() {
    run(async {
        let mut guest = Guest::start().await;
        let (_, mut stdio) = guest.create("a", &["cat"]).await.unwrap();
        guest.start_container("a").await.unwrap();
        let bytes: Vec<u8> = (0..2_000_000_u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_ne_bytes())
            .collect();
        let mut stdin = stdio.stdin.try_clone().unwrap();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || {
            stdin.write_all(&sent).unwrap();
            stdin.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stdio.output().read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got == bytes, "{} bytes of {}", got.len(), bytes.len());
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
    });
}

#[test]
fn home_is_added_to_the_environment_of_the_spec() {
    run(async {
        let mut guest = Guest::start().await;
        for (id, uid, home) in [("a", 0, "/root"), ("b", 7, "/")] {
            let mut container = Container::new(id, &["env"]);
            container.spec["process"]["env"] = serde_json::json!(["PATH=/bin", "B=2", "A=1=2"]);
            container.spec["process"]["user"]["uid"] = uid.into();
            let (_, mut stdio) = guest.create_as(container).await.unwrap();
            guest.start_container(id).await.unwrap();
            assert_eq!(
                stdio.stdout().await,
                format!("PATH=/bin\nB=2\nA=1=2\nHOME={home}\n")
            );
        }
    });
}

#[test]
fn an_exec_format_error_goes_to_standard_error() {
    run(async {
        let mut guest = Guest::start().await;
        let file = guest.rootfs.path().join("bin/nonsense");
        std::fs::write(&file, "nonsense").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (_, mut stdio) = guest.create("a", &["nonsense"]).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.stderr().await, "exec /bin/nonsense: exec format error\n");
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 1);
    });
}

#[test]
fn a_container_may_be_allowed_every_device() {
    run(async {
        let mut guest = Guest::start().await;
        let mut container =
            Container::new("a", &["sh", "-c", "mknod /tmp/fuse c 10 229 && true < /tmp/fuse"]);
        container.spec["linux"]["resources"]["devices"] =
            serde_json::json!([{"allow": true, "access": "rwm"}]);
        guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
    });
}

#[test]
fn the_kernel_accepts_programs_of_all_kinds_of_rules() {
    run(async {
        let mut guest = Guest::start().await;
        let mut container =
            Container::new("a", &["sh", "-c", "mknod /tmp/fuse c 10 229 && true < /tmp/fuse"]);
        container.spec["linux"]["resources"]["devices"] = serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "a", "access": "rwm"},
            {"allow": false, "type": "b", "access": "w"},
            {"allow": false, "type": "c", "major": 10, "access": "wm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "m"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "rwm"}
        ]);
        guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
    });
}

#[test]
fn limits_are_written_to_the_containers_cgroup() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "cd /sys/fs/cgroup && cat hugetlb.2MB.max hugetlb.2MB.rsvd.max cgroup.max.depth";
        let mut container = Container::new("a", &["sh", "-c", script]);
        container.spec["linux"]["resources"]["hugepageLimits"] =
            serde_json::json!([{"pageSize": "2MB", "limit": 4_194_304}]);
        container.spec["linux"]["resources"]["unified"] = serde_json::json!({"cgroup.max.depth": "3"});
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.stdout().await, "4194304\n4194304\n3\n");
        // A limit that the kernel does not support is refused, and nothing of the container remains.
        let mut container = Container::new("b", &["true"]);
        container.spec["linux"]["resources"]["hugepageLimits"] =
            serde_json::json!([{"pageSize": "3MB", "limit": 1}]);
        let (code, text) = guest.create_as(container).await.unwrap_err();
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(
            text.contains("linux.resources.hugepageLimits: the guest's kernel has no cgroup file"),
            "{text}"
        );
        guest.expect_nothing_left("b");
    });
}

/// A filter is loaded with or without a privilege, which a change of the user takes away.
#[test]
fn a_user_without_privileges_has_a_seccomp_profile() {
    run(async {
        let mut guest = Guest::start().await;
        let made = "Function not implemented";
        for (id, no_new_privileges) in [("a", true), ("b", false)] {
            let mut container = Container::new(id, &["sh", "-c", "mkdir /x; read line"]);
            let process = &mut container.spec["process"];
            process["noNewPrivileges"] = no_new_privileges.into();
            process["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
            let mut of_exec = process.clone();
            of_exec["args"] = serde_json::json!(["sh", "-c", "mkdir /x"]);
            container.spec["linux"]["seccomp"] = serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
            });
            let (_, mut init) = guest.create_as(container).await.unwrap();
            guest.start_container(id).await.unwrap();
            let (_, mut exec) = guest.exec_as(id, "x", of_exec, [true; 3]).await.unwrap();
            let text = exec.stderr().await;
            assert!(text.contains(made), "{text}");
            init.stdin.shutdown(std::net::Shutdown::Write).unwrap();
            let text = init.stderr().await;
            assert!(text.contains(made), "{text}");
        }
    });
}

#[test]
fn a_seccomp_profile_is_applied() {
    run(async {
        let mut guest = Guest::start().await;
        for (id, no_new_privileges) in [("a", true), ("b", false)] {
            let mut container = Container::new(id, &["sh", "-c", "mkdir /tmp/x; touch /tmp/y && echo made"]);
            container.spec["process"]["noNewPrivileges"] = no_new_privileges.into();
            container.spec["linux"]["seccomp"] = serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
            });
            let (_, mut stdio) = guest.create_as(container).await.unwrap();
            guest.start_container(id).await.unwrap();
            assert_eq!(stdio.stdout().await, "made\n");
            assert!(stdio.stderr().await.contains("Function not implemented"));
        }
    });
}
