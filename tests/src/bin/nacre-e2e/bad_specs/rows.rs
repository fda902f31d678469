//! The tables of invalid specifications: a change to the default specification, and the expected result.

use serde_json::{Value, json};

use super::Expected::{self, Prints, Refused};

/// A name, a change to containerd's default specification, and the expected result.
pub type Row = (&'static str, fn(&mut Value), Expected);

/// Missing, empty and contradictory fields.
pub const INVALID_FIELDS: &[Row] = &[
    (
        "the host's network namespace",
        |spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "network");
            }
        },
        Refused(&["linux.namespaces", "network"]),
    ),
    (
        "a seccomp listener on the host",
        |spec| {
            spec["linux"]["seccomp"] =
                json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/listener"});
        },
        Refused(&["linux.seccomp.listenerPath"]),
    ),
    (
        "no process",
        |spec| spec["process"] = Value::Null,
        Refused(&["process"]),
    ),
    (
        "an empty list of arguments",
        |spec| spec["process"]["args"] = json!([]),
        Refused(&["process.args"]),
    ),
    (
        "an empty command",
        |spec| spec["process"]["args"] = json!([""]),
        Refused(&["process.args"]),
    ),
    (
        "an empty working directory",
        |spec| spec["process"]["cwd"] = json!(""),
        Refused(&["process.cwd"]),
    ),
    (
        "a relative working directory",
        |spec| spec["process"]["cwd"] = json!("tmp"),
        Refused(&["process.cwd"]),
    ),
    (
        "a NUL in an argument",
        |spec| spec["process"]["args"] = json!(["echo", "a\u{0}b"]),
        Refused(&["process.args"]),
    ),
    (
        "a NUL in the environment",
        |spec| spec["process"]["env"] = json!(["A=a\u{0}b"]),
        Refused(&["process.env"]),
    ),
    (
        "a relative mount destination",
        |spec| mount(spec, "relative", "tmpfs"),
        Prints("ran\n"),
    ),
    (
        "an empty mount destination",
        |spec| mount(spec, "", "tmpfs"),
        Refused(&["destination"]),
    ),
    ("no root", |spec| spec["root"] = Value::Null, Refused(&["root"])),
    (
        "a root that is a file",
        |spec| spec["root"]["path"] = json!("/etc/passwd"),
        Refused(&["root file system"]),
    ),
    (
        "an unknown major version",
        |spec| spec["ociVersion"] = json!("9.9"),
        Refused(&["ociVersion"]),
    ),
    (
        "a duplicate namespace",
        |spec| push(&mut spec["linux"]["namespaces"], json!({"type": "pid"})),
        Refused(&["namespaces"]),
    ),
    (
        "a cgroup path with ..",
        |spec| spec["linux"]["cgroupsPath"] = json!("/../../../up"),
        Refused(&["cgroupsPath"]),
    ),
    (
        "a long hostname",
        |spec| spec["hostname"] = json!("x".repeat(300)),
        Refused(&["host name"]),
    ),
];

/// Limits out of range and unknown enum values.
pub const INVALID_VALUES: &[Row] = &[
    (
        "a negative memory limit",
        |spec| resources(spec, json!({"memory": {"limit": -5}})),
        Refused(&["memory.limit"]),
    ),
    (
        "a negative pids limit",
        |spec| resources(spec, json!({"pids": {"limit": -7}})),
        Refused(&["pids.limit"]),
    ),
    (
        "a negative CPU quota",
        |spec| resources(spec, json!({"cpu": {"quota": -3, "period": 100_000}})),
        Refused(&["cpu.quota"]),
    ),
    (
        "a CPU period that is too short for its quota",
        |spec| resources(spec, json!({"cpu": {"quota": 1000, "period": 1}})),
        Refused(&["cpu"]),
    ),
    (
        "a unified file outside of the cgroup",
        |spec| resources(spec, json!({"unified": {"../memory.max": "max"}})),
        Refused(&["unified"]),
    ),
    (
        "an unknown namespace type",
        |spec| push(&mut spec["linux"]["namespaces"], json!({"type": "sideways"})),
        Refused(&["namespaces", "sideways"]),
    ),
    (
        "an unknown resource limit",
        |spec| spec["process"]["rlimits"] = json!([{"type": "RLIMIT_SIDEWAYS", "soft": 1, "hard": 1}]),
        Refused(&["rlimits", "sideways"]),
    ),
    (
        "a soft limit above the hard one",
        |spec| spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1}]),
        Refused(&["rlimit"]),
    ),
    (
        "an unknown capability",
        |spec| spec["process"]["capabilities"]["bounding"] = json!(["CAP_SIDEWAYS"]),
        Prints("ran\n"),
    ),
    (
        "an unknown seccomp action",
        |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_SIDEWAYS"}),
        Refused(&["seccomp", "sideways"]),
    ),
    (
        "an unknown seccomp operator",
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_SIDEWAYS"}]}]});
        },
        Refused(&["seccomp", "sideways"]),
    ),
    (
        "a seccomp argument index out of range",
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
        },
        Refused(&["seccomp"]),
    ),
    (
        "an unknown mount propagation",
        |spec| spec["linux"]["rootfsPropagation"] = json!("sideways"),
        Refused(&["rootfsPropagation"]),
    ),
    (
        "an unknown tmpfs option",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["sideways=1"]}),
            );
        },
        Refused(&["/t"]),
    ),
    (
        "an unknown file system",
        |spec| mount(spec, "/t", "sidewaysfs"),
        Refused(&["sidewaysfs"]),
    ),
    (
        "an unknown device type",
        |spec| spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "x", "major": 1, "minor": 1}]),
        Refused(&["devices"]),
    ),
    (
        "a device with a relative path",
        |spec| spec["linux"]["devices"] = json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]),
        Refused(&["devices"]),
    ),
    (
        "a device path with ..",
        |spec| {
            spec["linux"]["devices"] = json!([{"path": "/dev/../../x", "type": "c", "major": 1, "minor": 3}])
        },
        Prints("ran\n"),
    ),
    (
        "a sysctl name with a path",
        |spec| spec["linux"]["sysctl"] = json!({"kernel/../../../etc/passwd": "1"}),
        Refused(&["sysctl"]),
    ),
    (
        "a sysctl without a namespace",
        |spec| spec["linux"]["sysctl"] = json!({"kernel.panic": "1"}),
        Refused(&["sysctl"]),
    ),
    (
        "id mappings that overlap",
        |spec| {
            push(&mut spec["linux"]["namespaces"], json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 5, "hostID": 0, "size": 10}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
        },
        Refused(&[]),
    ),
    (
        "a hook that does not exist",
        |spec| spec["hooks"] = json!({"createRuntime": [{"path": "/no/such/hook"}]}),
        Refused(&["/no/such/hook"]),
    ),
    (
        "a hook without a path",
        |spec| spec["hooks"] = json!({"prestart": [{"path": ""}]}),
        Refused(&["hooks.prestart"]),
    ),
    (
        "a pod's size that is no number",
        |spec| {
            spec["annotations"] = json!({
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": "s1",
                "io.kubernetes.cri.sandbox-memory": "1Gi",
            });
        },
        Refused(&[
            "annotations[\"io.kubernetes.cri.sandbox-memory\"]",
            "expected a decimal number",
        ]),
    ),
    (
        "an invalid user id",
        |spec| spec["process"]["user"] = json!({"uid": 4_294_967_295_u32, "gid": 0}),
        Refused(&["uid"]),
    ),
];

/// Paths that point outside of the container's root.
pub const OUTSIDE_PATHS: &[Row] = &[
    (
        "a mount destination with ..",
        |spec| {
            mount(spec, "/../../../up", "tmpfs");
            spec["process"]["args"] = json!(["sh", "-c", "grep -c ' /up ' /proc/self/mountinfo"]);
        },
        Prints("1\n"),
    ),
    (
        "a mount on the root",
        |spec| mount(spec, "/", "tmpfs"),
        Refused(&[]),
    ),
    (
        "a mount on the root through ..",
        |spec| mount(spec, "/tmp/../..", "tmpfs"),
        Refused(&[]),
    ),
    (
        "a masked path with ..",
        |spec| spec["linux"]["maskedPaths"] = json!(["/../../../../etc/passwd"]),
        Prints("ran\n"),
    ),
    (
        "a tmpfs on /proc",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
            );
        },
        Refused(&["/proc"]),
    ),
    (
        "a bind mount source from the guest's initramfs",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/x", "type": "bind", "source": "/init", "options": ["bind"]}),
            );
        },
        Refused(&["/init"]),
    ),
];

/// Appends `item` to `list`.
pub fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// Adds a mount of type `kind`.
pub fn mount(spec: &mut Value, destination: &str, kind: &str) {
    push(
        &mut spec["mounts"],
        json!({"destination": destination, "type": kind, "source": kind}),
    );
}

fn resources(spec: &mut Value, with: Value) {
    spec["linux"]["resources"] = with;
}
