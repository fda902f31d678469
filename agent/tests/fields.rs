//! Fields of a spec, each seen from inside of a container that a standalone agent creates: namespaces, hooks,
//! mounts, devices, sysctls. `process_fields.rs` has those of the process; `containers.rs` says what these
//! tests need, and docs/conformance.md names them.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use guest::container::{Container, add, add_users, chown};
use guest::{Guest, run};
use serde_json::{Value, json};
use ttrpc::Code;

#[test]
fn user_namespace() {
    run(async {
        let mut guest = Guest::start().await;
        chown(guest.rootfs.path(), 100_000);
        let script = "cat /proc/self/uid_map /proc/self/gid_map | xargs echo; id -u; id -g; \
            cat /sys/class/net/lo/flags; echo again > /dev/stdout; touch /tmp/x && echo made; read line";
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
fn user_namespace_with_several_ranges() {
    run(async {
        let mut guest = Guest::start().await;
        let text = guest
            .output(
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
fn time_namespace_offsets() {
    run(async {
        let mut guest = Guest::start().await;
        let text = guest
            .output("a", "cat /proc/self/timens_offsets | xargs echo", |spec| {
                add(spec, "/linux/namespaces", json!({"type": "time"}));
                spec["linux"]["timeOffsets"] = json!({
                    "monotonic": {"secs": 1000, "nanosecs": 5},
                    "boottime": {"secs": 2000, "nanosecs": 7}
                });
            })
            .await;
        assert_eq!(text, "monotonic 1000 5 boottime 2000 7\n");
    });
}

#[test]
fn start_container_hooks_run_in_the_container_before_its_command() {
    run(async {
        let mut guest = Guest::start().await;
        let hook = |script: &str| {
            json!({
                "path": "/bin/sh",
                "args": ["sh", "-c", script, "zero", "one"],
                "env": ["A=b", "PATH=/bin"],
                "timeout": 5
            })
        };
        let text = guest
            .output("a", "cat /hook", |spec| {
                let hook = hook("echo $A $0 $1 > /hook; cat > /state; test -e /bin/busybox");
                spec["hooks"] = json!({"startContainer": [hook]});
            })
            .await;
        assert_eq!(text, "b zero one\n");
        let state: Value =
            serde_json::from_slice(&std::fs::read(guest.rootfs.path().join("state")).unwrap()).unwrap();
        assert_eq!(state["id"], "a");
        // The command does not run if a hook fails or times out.
        for (id, script) in [("b", "exit 3"), ("c", "sleep 100")] {
            let text = guest
                .output(id, "echo ran", |spec| {
                    let mut hook = hook(script);
                    hook["timeout"] = json!(1);
                    spec["hooks"] = json!({"startContainer": [hook]});
                })
                .await;
            assert_eq!(text, "");
            assert_ne!(guest.wait(id).await.unwrap().exit_status, 0);
        }
        let (code, text) = guest
            .refusal(|spec| spec["hooks"] = json!({"createContainer": [hook("true")]}))
            .await;
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.contains("hooks.createContainer[0].path: "), "{text}");
    });
}

/// The options of the mount at /m in a container with a tmpfs there, as mountinfo shows them: per-mount
/// options, optional fields (propagation), super options.
async fn tmpfs_options(guest: &mut Guest, id: &str, options: &[&str]) -> String {
    let script = "while read a b c d point flags rest; do test $point = /m && echo $flags $rest; done \
        < /proc/self/mountinfo; true";
    // Over a directory, the tmpfs would have its mode.
    let _ = std::fs::remove_dir(guest.rootfs.path().join("m"));
    let text = guest.output(id, script, |spec| add_tmpfs(spec, options)).await;
    // <per-mount options> <optional fields> - tmpfs x <super options>
    let words: Vec<&str> = text.split_whitespace().collect();
    let separator = words.iter().position(|word| *word == "-").unwrap();
    let mut mount = words[..separator].join(" ");
    if let Some(at) = mount.find("shared:") {
        mount.replace_range(at.., "shared:N");
    }
    let super_options: Vec<&str> = words[separator + 3]
        .split(',')
        .filter(|word| !word.starts_with("inode"))
        .collect();
    format!("{mount} {}", super_options.join(","))
}

fn add_tmpfs(spec: &mut Value, options: &[&str]) {
    let mount = json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": options});
    add(spec, "/mounts", mount);
}

#[test]
fn options_of_mounts() {
    run(async {
        let mut guest = Guest::start().await;
        let without_effect = "silent noiversion nomand async defaults rw suid dev exec";
        for (index, (options, want)) in [
            ("sync", "rw,relatime rw,sync"),
            ("dirsync nodev", "rw,nodev,relatime rw,dirsync"),
            ("lazytime", "rw,relatime rw,lazytime"),
            ("ro nosuid noexec", "ro,nosuid,noexec,relatime rw"),
            ("noatime nodiratime", "rw,noatime,nodiratime rw"),
            ("strictatime", "rw rw"),
            ("nosymfollow", "rw,relatime,nosymfollow rw"),
            ("size=64k mode=700", "rw,relatime rw,size=64k,mode=700"),
            (without_effect, "rw,relatime rw"),
            ("shared", "rw,relatime shared:N rw"),
            ("rshared", "rw,relatime shared:N rw"),
            ("slave", "rw,relatime rw"),
            ("rprivate", "rw,relatime rw"),
            ("runbindable", "rw,relatime unbindable rw"),
        ]
        .into_iter()
        .enumerate()
        {
            let list: Vec<&str> = options.split(' ').collect();
            let got = tmpfs_options(&mut guest, &format!("c{index}"), &list).await;
            assert_eq!(got, want, "{options}");
        }
        for option in ["remount", "mand"] {
            let (code, text) = guest.refusal(|spec| add_tmpfs(spec, &[option])).await;
            assert_eq!(code, Code::INVALID_ARGUMENT);
            assert!(text.contains("options[0]"), "{text}");
        }
    });
}

#[test]
fn rootfs_propagation() {
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
            let script = "while read a b c d point flags shared rest; do test $point = / && echo $shared; done \
                < /proc/self/mountinfo; true";
            let text = guest
                .output(&format!("c{index}"), script, |spec| {
                    spec["linux"]["rootfsPropagation"] = json!(word);
                })
                .await;
            assert_eq!(text.trim().split(':').next().unwrap(), want, "{word}");
        }
        let (_, text) = guest
            .refusal(|spec| spec["linux"]["rootfsPropagation"] = json!("up"))
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
        let own = guest
            .output(
                "own",
                "for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done",
                |_| {},
            )
            .await;
        let script = "for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done; \
            cat /proc/sys/kernel/hostname; cat /proc/1/cmdline";
        let text = guest
            .output("second", script, |spec| {
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
        let (code, text) = guest
            .refusal(|spec| {
                spec["linux"]["namespaces"][1]["path"] = json!("container:nobody");
            })
            .await;
        assert_eq!(
            (code, text.as_str()),
            (Code::NOT_FOUND, "container \"nobody\" not found")
        );
        guest.kill("first", 9, false).await.unwrap();
        guest.wait("first").await.unwrap();
        let (code, _) = guest
            .refusal(|spec| spec["linux"]["namespaces"][1]["path"] = json!("container:first"))
            .await;
        assert_eq!(code, Code::NOT_FOUND);
    });
}

#[test]
fn devices_are_created_or_refused() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "stat -c '%n %F %a %t:%T %u:%g' /dev/zero2 /dev/pipe";
        let text = guest
            .output("a", script, |spec| {
                spec["linux"]["devices"] = json!([
                    {"type": "c", "path": "/dev/zero2", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3,
                        "gid": 4},
                    {"type": "p", "path": "/dev/pipe", "fileMode": 0o600}
                ]);
            })
            .await;
        assert_eq!(
            text,
            "/dev/zero2 character special file 640 1:5 3:4\n/dev/pipe fifo 600 0:0 0:0\n"
        );
        for (device, want) in [
            (
                json!({"type": "c", "path": "/dev/x", "major": 240, "minor": 77}),
                "the guest has no device 240:77 for /dev/x",
            ),
            (
                json!({"type": "b", "path": "/dev/x", "major": 8, "minor": 0}),
                "the guest has no device 8:0 for /dev/x",
            ),
            (
                json!({"type": "c", "path": "/x", "major": 1, "minor": 5}),
                "linux.devices[0].path: expected a path below /dev",
            ),
        ] {
            let (code, text) = guest
                .refusal(|spec| spec["linux"]["devices"] = json!([device]))
                .await;
            assert_eq!(code, Code::INVALID_ARGUMENT);
            assert!(text.contains(want), "{text}");
        }
    });
}

#[test]
fn a_privileged_container_gets_the_devices_that_the_guest_has() {
    run(async {
        let mut guest = Guest::start().await;
        let mut container = Container::new("a", &["sh", "-c", "cd /dev; ls zero2 none sda"]);
        container.spec["linux"]["devices"] = json!([
            {"type": "c", "path": "/dev/zero2", "major": 1, "minor": 5},
            {"type": "c", "path": "/dev/none", "major": 240, "minor": 77},
            {"type": "b", "path": "/dev/sda", "major": 8, "minor": 0}
        ]);
        container.spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        let (created, mut stdio) = guest.create_as(container).await.unwrap();
        assert_eq!(
            created.ignored,
            [
                "linux.devices: a container that may use every device does not get the disks of the host: /dev/sda",
                "linux.devices: the guest does not have /dev/none"
            ]
        );
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.stdout().await, "zero2\n");
    });
}

#[test]
fn sysctls_personality_and_masked_paths() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "cat /proc/sys/kernel/msgmax /proc/sys/kernel/hostname /proc/sys/kernel/domainname; \
            cat /secret | wc -c; ls /hidden | wc -l; touch /fixed/x; touch /x; uname -m";
        std::fs::write(guest.rootfs.path().join("secret"), "secret").unwrap();
        for directory in ["hidden", "fixed"] {
            std::fs::create_dir(guest.rootfs.path().join(directory)).unwrap();
            std::fs::write(guest.rootfs.path().join(directory).join("file"), "").unwrap();
        }
        let text = guest
            .output("a", script, |spec| {
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
            "12345\nhost\ndomain\n0\n0\n\
            touch: /fixed/x: Read-only file system\ntouch: /x: Read-only file system\ni686\n"
        );
        let (_, text) = guest
            .refusal(|spec| spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"}))
            .await;
        assert!(text.contains("vm.swappiness"), "{text}");
    });
}

#[test]
fn sysctls_of_a_user_namespace_need_one_of_the_container() {
    run(async {
        let mut guest = Guest::start().await;
        chown(guest.rootfs.path(), 100_000);
        let sysctl = json!({"user.max_pid_namespaces": "77", "net.ipv4.ip_unprivileged_port_start": "81"});
        let script = "cat /proc/sys/user/max_pid_namespaces /proc/sys/net/ipv4/ip_unprivileged_port_start";
        let text = guest
            .output("a", script, |spec| {
                add_users(spec);
                spec["linux"]["sysctl"] = sysctl;
            })
            .await;
        assert_eq!(text, "77\n81\n");
        let (code, text) = guest
            .refusal(|spec| spec["linux"]["sysctl"] = json!({"user.max_pid_namespaces": "77"}))
            .await;
        assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
        assert!(text.contains("user.max_pid_namespaces"), "{text}");
    });
}

#[test]
fn a_read_only_dev_has_its_devices() {
    run(async {
        let mut guest = Guest::start().await;
        let text = guest
            .output(
                "a",
                "head -c 3 /dev/zero | wc -c; readlink /dev/ptmx; readlink /dev/fd; touch /dev/x 2>&1",
                |spec| {
                    spec["mounts"][1]["options"] = json!(["nosuid", "ro", "mode=755"]);
                },
            )
            .await;
        assert_eq!(
            text,
            "3\npts/ptmx\n/proc/self/fd\ntouch: /dev/x: Read-only file system\n"
        );
    });
}

#[test]
fn mount_destinations_never_leave_the_root() {
    run(async {
        let mut guest = Guest::start().await;
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), guest.rootfs.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc", guest.rootfs.path().join("up")).unwrap();
        for (index, destination) in ["/up", "/link/x", "relative"].into_iter().enumerate() {
            let mut container = Container::new(&format!("c{index}"), &["true"]);
            // The mount has no source, which a tmpfs does not need.
            add(
                &mut container.spec,
                "/mounts",
                json!({"destination": destination, "type": "tmpfs"}),
            );
            // It may be created or refused, but nothing may be created outside of the root.
            let _ = guest.create_as(container).await;
        }
        assert!(std::path::Path::new("/etc/passwd").exists());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        guest.create("after", &["true"]).await.unwrap();
    });
}
