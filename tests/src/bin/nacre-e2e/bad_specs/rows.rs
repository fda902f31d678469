//! The tables of wrong specifications: what is changed, and what must come of it.

use serde_json::{Value, json};

use super::Expected::{self, Prints, Refused};

/// A name, a change to containerd's default specification, and what must come of it.
pub type Row = (&'static str, fn(&mut Value), Expected);

pub const WRONG: &[Row] = &[
    (
        "the host's network",
        |spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "network");
            }
        },
        Refused(&["linux.namespaces", "network"]),
    ),
    (
        "a listener on the host",
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
        "no arguments",
        |spec| spec["process"]["args"] = json!([]),
        Refused(&["process.args"]),
    ),
    (
        "an empty command",
        |spec| spec["process"]["args"] = json!([""]),
        Refused(&["process.args"]),
    ),
    (
        "no working directory",
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
        "a relative destination",
        |spec| mount(spec, "relative", "tmpfs"),
        Prints("ran\n"),
    ),
    (
        "an empty destination",
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
        "a version of another world",
        |spec| spec["ociVersion"] = json!("9.9"),
        Refused(&["ociVersion"]),
    ),
    (
        "a namespace twice",
        |spec| push(&mut spec["linux"]["namespaces"], json!({"type": "pid"})),
        Refused(&["namespaces"]),
    ),
    (
        "a path in place of a cgroup",
        |spec| spec["linux"]["cgroupsPath"] = json!("/../../../up"),
        Refused(&["cgroupsPath"]),
    ),
    (
        "a long hostname",
        |spec| spec["hostname"] = json!("x".repeat(300)),
        Refused(&["host name"]),
    ),
];

pub const NONSENSE: &[Row] = &[
    (
        "a negative limit of memory",
        |spec| resources(spec, json!({"memory": {"limit": -5}})),
        Refused(&["memory.limit"]),
    ),
    (
        "a negative limit of processes",
        |spec| resources(spec, json!({"pids": {"limit": -7}})),
        Refused(&["pids.limit"]),
    ),
    (
        "a negative quota",
        |spec| resources(spec, json!({"cpu": {"quota": -3, "period": 100_000}})),
        Refused(&["cpu.quota"]),
    ),
    (
        "a period of 0 and a quota",
        |spec| resources(spec, json!({"cpu": {"quota": 1000, "period": 1}})),
        Refused(&["cpu"]),
    ),
    (
        "a file outside of the cgroup",
        |spec| resources(spec, json!({"unified": {"../memory.max": "max"}})),
        Refused(&["unified"]),
    ),
    (
        "an unknown namespace",
        |spec| push(&mut spec["linux"]["namespaces"], json!({"type": "sideways"})),
        Refused(&["namespaces", "sideways"]),
    ),
    (
        "an unknown limit",
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
        "an unknown action",
        |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_SIDEWAYS"}),
        Refused(&["seccomp", "sideways"]),
    ),
    (
        "an unknown operator",
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_SIDEWAYS"}]}]});
        },
        Refused(&["seccomp", "sideways"]),
    ),
    (
        "an argument that no call has",
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
        },
        Refused(&["seccomp"]),
    ),
    (
        "an unknown propagation",
        |spec| spec["linux"]["rootfsPropagation"] = json!("sideways"),
        Refused(&["rootfsPropagation"]),
    ),
    (
        "an unknown option of a tmpfs",
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
        "an unknown kind of device",
        |spec| spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "x", "major": 1, "minor": 1}]),
        Refused(&["devices"]),
    ),
    (
        "a device with a relative path",
        |spec| spec["linux"]["devices"] = json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]),
        Refused(&["devices"]),
    ),
    (
        "a device outside of /dev by ..",
        |spec| {
            spec["linux"]["devices"] = json!([{"path": "/dev/../../x", "type": "c", "major": 1, "minor": 3}])
        },
        Prints("ran\n"),
    ),
    (
        "a setting by a path",
        |spec| spec["linux"]["sysctl"] = json!({"kernel/../../../etc/passwd": "1"}),
        Refused(&["sysctl"]),
    ),
    (
        "a setting that is no namespace's",
        |spec| spec["linux"]["sysctl"] = json!({"kernel.panic": "1"}),
        Refused(&["sysctl"]),
    ),
    (
        "maps that overlap",
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
        "a user that no id has",
        |spec| spec["process"]["user"] = json!({"uid": 4_294_967_295_u32, "gid": 0}),
        Refused(&["uid"]),
    ),
];

pub const OUTSIDE: &[Row] = &[
    (
        "a destination upwards",
        |spec| {
            mount(spec, "/../../../up", "tmpfs");
            spec["process"]["args"] = json!(["sh", "-c", "grep -c ' /up ' /proc/self/mountinfo"]);
        },
        Prints("1\n"),
    ),
    (
        "a destination that is the root",
        |spec| mount(spec, "/", "tmpfs"),
        Refused(&[]),
    ),
    (
        "a destination that is the root by ..",
        |spec| mount(spec, "/tmp/../..", "tmpfs"),
        Refused(&[]),
    ),
    (
        "a masked path upwards",
        |spec| spec["linux"]["maskedPaths"] = json!(["/../../../../etc/passwd"]),
        Prints("ran\n"),
    ),
    (
        "a tmpfs in place of /proc",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
            );
        },
        Refused(&["/proc"]),
    ),
    (
        "a source in the guest's own files",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/x", "type": "bind", "source": "/init", "options": ["bind"]}),
            );
        },
        Refused(&["/init"]),
    ),
];

pub fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

pub fn mount(spec: &mut Value, destination: &str, kind: &str) {
    push(
        &mut spec["mounts"],
        json!({"destination": destination, "type": kind, "source": kind}),
    );
}

fn resources(spec: &mut Value, with: Value) {
    spec["linux"]["resources"] = with;
}
