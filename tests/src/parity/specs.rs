//! The specifications that behaviours share: containerd's default specification, unchanged or with some
//! fields changed. Fields that don't affect each other are changed in one specification: each container takes
//! seconds.

use serde_json::{Value, json};

use crate::containerd::bundle::shared_directory;

/// A change to containerd's default specification.
#[derive(Debug)]
pub struct Spec {
    /// Unique; part of the container's id.
    pub name: &'static str,
    /// Modifies the default specification.
    pub change: fn(&mut Value),
}

/// containerd's default specification, unchanged.
pub const DEFAULT: Spec = Spec {
    name: "default",
    change: |_| (),
};

/// All fields of `process` but the terminal, and the host name.
pub const PROCESS: Spec = Spec {
    name: "process",
    change: |spec| {
        let process = &mut spec["process"];
        process["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [44, 65534], "umask": 0o027});
        process["cwd"] = json!("/tmp");
        process["env"] = json!(["PATH=/bin", "GREETING=hello world", "EMPTY=", "WORD=sécond"]);
        process["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SETPCAP"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_KILL"],
            "inheritable": ["CAP_CHOWN", "CAP_NET_RAW"],
            "ambient": ["CAP_NET_RAW"]
        });
        process["noNewPrivileges"] = json!(false);
        process["oomScoreAdj"] = json!(321);
        process["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1000},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
            {"type": "RLIMIT_STACK", "soft": 4194304, "hard": 16777216},
            {"type": "RLIMIT_NPROC", "soft": 200, "hard": 300},
            {"type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 131072}
        ]);
        spec["hostname"] = json!("parity");
        spec["annotations"] = json!({"org.example.words": "any"});
    },
};

/// A read-only root, masked and read-only paths, sysctls and a seccomp filter.
pub const KERNEL: Spec = Spec {
    name: "kernel",
    change: |spec| {
        spec["root"]["readonly"] = json!(true);
        spec["process"]["apparmorProfile"] = json!("");
        let linux = &mut spec["linux"];
        linux["sysctl"] = json!({
            "net.ipv4.ip_forward": "1",
            "net.core.somaxconn": "321",
            "kernel.shmmax": "1000000",
            "kernel.msgmax": "4096"
        });
        linux["maskedPaths"] = json!(["/proc/keys", "/bin/masked", "/etc", "/no/such/path"]);
        linux["readonlyPaths"] = json!(["/proc/sys", "/run", "/no/such/path"]);
        linux["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["sethostname"], "action": "SCMP_ACT_TRAP"},
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["unshare"], "action": "SCMP_ACT_LOG"}
            ]
        });
    },
};

/// tmpfs, bind and cgroup mounts with options.
pub const MOUNTS: Spec = Spec {
    name: "mounts",
    change: |spec| {
        let host = shared_directory(spec);
        let mut add = |destination: &str, kind: &str, source: &str, options: &[&str]| {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(json!({
                    "destination": destination, "type": kind, "source": source, "options": options
                }));
            }
        };
        let file = format!("{host}/file");
        add(
            "/t",
            "tmpfs",
            "words",
            &["size=1m", "mode=0750", "nosuid", "noexec", "nr_inodes=64"],
        );
        add("/rw", "bind", &host, &["rbind", "rw"]);
        add("/ro", "bind", &host, &["rbind", "ro"]);
        add("/new/file", "bind", &file, &["bind", "ro"]);
        add("/etc/over", "bind", &file, &["bind", "rw"]);
        add(
            "/noexec",
            "bind",
            &host,
            &["rbind", "noexec", "nosuid", "nodev", "noatime"],
        );
        add("/rw/below", "tmpfs", "tmpfs", &["size=64k"]);
        add(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev", "relatime"],
        );
    },
};

/// Device nodes and device rules.
pub const DEVICES: Spec = Spec {
    name: "devices",
    change: |spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 44},
            {"path": "/dev/sub/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622}
        ]);
        for set in ["bounding", "permitted", "effective"] {
            if let Some(capabilities) = spec["process"]["capabilities"][set].as_array_mut() {
                capabilities.push(json!("CAP_SYSLOG"));
            }
        }
        spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"},
            {"allow": true, "type": "c", "major": 1, "minor": 4, "access": "m"},
            {"allow": true, "type": "b", "major": 7, "access": "m"}
        ]);
    },
};

/// A user namespace with id mappings, and a cgroup namespace.
pub const USERS: Spec = Spec {
    name: "users",
    change: |spec| {
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.extend([json!({"type": "user"}), json!({"type": "cgroup"})]);
        }
        spec["linux"]["uidMappings"] = json!([
            {"containerID": 0, "hostID": 0, "size": 1}, {"containerID": 1, "hostID": 100_001, "size": 65535}
        ]);
        spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    },
};

/// Resource limits, a cgroup namespace and cgroup mount in which the container can read them, and no masked
/// paths.
pub const LIMITS: Spec = Spec {
    name: "limits",
    change: |spec| {
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "cgroup"}));
        }
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"]
            }));
        }
        let resources = &mut spec["linux"]["resources"];
        resources["memory"] = json!({"limit": 67_108_864, "reservation": 33_554_432, "swap": 67_108_864});
        resources["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
        resources["pids"] = json!({"limit": 20});
        resources["unified"] = json!({"memory.high": "60000000"});
        spec["linux"]["maskedPaths"] = json!([]);
    },
};
