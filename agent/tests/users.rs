//! A pod with a user namespace, as containers in it see it. `containers.rs` says what these tests need.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use guest::container::{Container, chown};
use guest::{Guest, run};
use serde_json::{Value, json};

/// The spec of a container of a pod with a user namespace: it has no network, IPC and UTS namespaces of its own.
fn join_users(spec: &mut Value, pid: Value) {
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["linux"]["uidMappings"] = ids.clone();
    spec["linux"]["gidMappings"] = ids;
    spec["linux"]["namespaces"] = json!([pid, {"type": "mount"}, {"type": "user", "path": "pod:"}]);
    let capabilities = spec["process"]["capabilities"].as_object_mut().unwrap();
    for (_, set) in capabilities {
        set.as_array_mut().unwrap().push("CAP_NET_ADMIN".into());
    }
}

#[test]
fn containers_share_the_user_namespace_of_their_pod() {
    run(async {
        let mut guest = Guest::start().await;
        chown(guest.rootfs.path(), 100_000);
        guest.setup_users(100_000).await.unwrap();
        let namespaces = "for type in user net ipc uts; do readlink /proc/self/ns/$type; done";
        let first = format!(
            "exec 2>&1; cat /proc/self/uid_map /proc/self/gid_map | xargs echo; ls /sys/class/net; cat /sys/class/net/lo/flags
            ip addr add 10.77.0.1/32 dev lo && echo added; {namespaces}; read line"
        );
        let mut container = Container::new("a", &["sh", "-c", &first]);
        join_users(&mut container.spec, json!({"type": "pid"}));
        let (_, mut stdio) = guest.create_as(container).await.unwrap();
        guest.start_container("a").await.unwrap();
        for want in ["0 100000 65536 0 100000 65536\n", "lo\n", "0x9\n", "added\n"] {
            assert_eq!(stdio.line().await, want);
        }
        let mut shared = Vec::new();
        for _ in 0..4 {
            shared.push(stdio.line().await);
        }
        let exec = ["sh", "-c", &format!("id -u; {namespaces}")];
        let (_, mut exec) = guest.exec("a", "e", &exec).await.unwrap();
        assert_eq!(exec.stdout().await, format!("0\n{}", shared.concat()));
        // The second one also shares the pod's processes.
        let second = format!(
            "{namespaces}; ip -o addr show dev lo | grep -c 10.77.0.1; grep -e ^Name -e ^Uid /proc/1/status | xargs"
        );
        let seen = guest
            .output("b", &second, |spec| {
                join_users(spec, json!({"type": "pid", "path": "pod:"}));
            })
            .await;
        assert_eq!(seen, format!("{}1\nName: pause Uid: 0 0 0 0\n", shared.concat()));
    });
}

#[test]
fn an_id_map_that_the_kernel_refuses_is_named() {
    run(async {
        let guest = Guest::start().await;
        // Ids beyond the last one.
        let (_, error) = guest.setup_users(u32::MAX - 5).await.unwrap_err();
        assert!(error.contains("uid_map to \"0 4294967290 65536\\n\""), "{error}");
    });
}
