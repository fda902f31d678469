//! Specs against the protocol's table of fields (`nacre_protocol::spec`): the libraries that read a spec must
//! accept every value that the table accepts.

use super::*;
use nacre_protocol::spec::{Handling, Kind, Node, SPEC, leaves};

/// Sets the field at the JSON pointer `pointer`, whose parent must exist.
fn set(spec: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
}

#[test]
fn bad_values_are_refused_by_their_path() {
    for (pointer, value, path) in [
        ("/process/args", json!([1]), "process.args[0]"),
        ("/process/user/uid", json!(-1), "process.user.uid"),
        ("/process/user/gid", json!("0"), "process.user.gid"),
        ("/process/env", json!(["A=\u{0}"]), "process.env[0]"),
        ("/process/capabilities", json!([]), "process.capabilities"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU"}]),
            "process.rlimits[0].hard",
        ),
        (
            "/mounts",
            json!([{"destination": "", "type": "tmpfs"}]),
            "mounts[0].destination",
        ),
        ("/mounts", vec![json!({}); 10_000].into(), "mounts"),
        (
            "/linux/namespaces",
            json!([{"type": "time travel"}]),
            "linux.namespaces[0].type",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "X"}),
            "linux.seccomp.defaultAction",
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": -2}}),
            "linux.resources.memory.limit",
        ),
        (
            "/linux/rootfsPropagation",
            json!("upwards"),
            "linux.rootfsPropagation",
        ),
        ("/root", json!("rootfs"), "root"),
        ("/linux", json!(1), "linux"),
        ("/process", json!(null), "process"),
    ] {
        let text = refusal(|spec| set(spec, pointer, value));
        assert!(text.starts_with(&format!("spec: {path}: ")), "{pointer}: {text}");
    }
}

#[test]
fn bytes_that_are_no_json_object_are_an_error() {
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for bytes in [
        deep.as_bytes(),
        b"",
        b"\xff",
        b"[]",
        b"\"x\"",
        b"{\"ociVersion\": \"1\"",
        b"{\"process\":\"\xff\"}",
    ] {
        let text = prepare("a", bytes, NO_DISKS).unwrap_err().to_string();
        assert!(text.starts_with("spec: "), "{text}");
        assert!(parse_process(bytes).is_err());
    }
}

/// An object that has `name` at the table's path `path`, and the JSON pointer to put it at.
fn example(path: &str, name: &str) -> (&'static str, Value) {
    let seccomp = |field: &str| json!({"defaultAction": "SCMP_ACT_ALLOW", field: [name]});
    let syscall = |action: &str, op: &str| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": action,
            "args": [{"index": 0, "value": 1, "op": op}]}]})
    };
    match path {
        "process.scheduler.policy" => ("/process/scheduler", json!({"policy": name})),
        "process.scheduler.flags[]" => {
            let scheduler = json!({"policy": "SCHED_OTHER", "flags": [name]});
            ("/process/scheduler", scheduler)
        }
        "process.ioPriority.class" => ("/process/ioPriority", json!({"class": name, "priority": 1})),
        "process.rlimits[].type" => ("/process/rlimits", json!([{"type": name, "hard": 1, "soft": 1}])),
        "linux.namespaces[].type" => ("/linux/namespaces", json!([{"type": name}])),
        "linux.devices[].type" => {
            let device = json!({"type": name, "path": "/dev/x", "major": 1, "minor": 3});
            ("/linux/devices", json!([device]))
        }
        "linux.resources.devices[].type" => {
            let rule = json!({"allow": true, "type": name, "access": "r"});
            ("/linux/resources", json!({"devices": [rule]}))
        }
        "linux.rootfsPropagation" => ("/linux/rootfsPropagation", json!(name)),
        "linux.personality.domain" => ("/linux/personality", json!({"domain": name})),
        "linux.seccomp.defaultAction" => ("/linux/seccomp", json!({"defaultAction": name})),
        "linux.seccomp.architectures[]" => ("/linux/seccomp", seccomp("architectures")),
        "linux.seccomp.flags[]" => ("/linux/seccomp", seccomp("flags")),
        "linux.seccomp.syscalls[].action" => ("/linux/seccomp", syscall(name, "SCMP_CMP_EQ")),
        "linux.seccomp.syscalls[].args[].op" => ("/linux/seccomp", syscall("SCMP_ACT_ERRNO", name)),
        other => {
            let set = other
                .strip_prefix("process.capabilities.")
                .and_then(|set| set.strip_suffix("[]"));
            ("/process/capabilities", json!({set.unwrap(): [name]}))
        }
    }
}

#[test]
fn every_name_of_the_table_is_accepted() {
    let mut seen = 0;
    for (path, leaf) in leaves(&SPEC, "") {
        let (Kind::OneOf(names) | Kind::OneOfExcept(names, _) | Kind::OneOfOrIgnored(names)) = leaf.kind
        else {
            continue;
        };
        for name in names {
            let (pointer, value) = example(&path, name);
            let json = spec_json(|spec| set(spec, pointer, value));
            prepare("a", &json, NO_DISKS).unwrap_or_else(|error| panic!("{path} = {name}: {error}"));
            seen += 1;
        }
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn missing_and_empty_fields_are_accepted() {
    let least = json!({"ociVersion": "1.2", "process": {"args": ["a"], "cwd": "/"}, "root": {"path": "/r"}, "linux": {}});
    let prepared = |change: &dyn Fn(&mut Value)| {
        let mut spec = least.clone();
        change(&mut spec);
        prepare("a", &serde_json::to_vec(&spec).unwrap(), NO_DISKS)
            .unwrap_or_else(|error| panic!("{spec}: {error}"))
    };
    assert_eq!(prepared(&|_| {}).uid, 0);
    for (pointer, value) in [
        ("/process/user", json!({})),
        ("/process/user", json!({"uid": 7})),
        ("/process/user", json!(null)),
        ("/process/capabilities", json!({})),
        ("/process/execCPUAffinity", json!({})),
        ("/process/env", json!(null)),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"})),
        ("/process/scheduler", json!({"policy": "SCHED_BATCH"})),
        ("/linux/resources", json!({})),
        (
            "/linux/resources",
            json!({"memory": {}, "cpu": {}, "pids": {}, "devices": [], "hugepageLimits": [], "unified": {}}),
        ),
        (
            "/linux/resources",
            json!({"pids": {"limit": null}, "devices": [{"allow": true}]}),
        ),
        ("/linux/timeOffsets", json!({})),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {}, "boottime": {"secs": 1}}),
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}),
        ),
        ("/linux/devices", json!([{"type": "p", "path": "/dev/fifo"}])),
        ("/linux/namespaces", json!([])),
        ("/linux/cgroupsPath", json!("")),
        ("/linux/rootfsPropagation", json!("")),
        ("/hooks", json!({"startContainer": [{"path": "/bin/true"}]})),
        ("/mounts", json!([{"destination": "/p", "type": "proc"}])),
        ("/annotations", json!({})),
        ("/hostname", json!("")),
    ] {
        let prepared = prepared(&|spec| set(spec, pointer, value.clone()));
        assert_eq!(prepared.limits, [], "{pointer} = {value}");
    }
}

/// A value that the table and the agent accept for the leaf of kind `kind` at the table's path `path`.
fn sample(path: &str, kind: Kind) -> Value {
    match kind {
        Kind::String => match path {
            "root.path" | "linux.cgroupsPath" => json!("/x"),
            "linux.namespaces[].path" => json!("container:x"),
            "mounts[].type" => json!("tmpfs"),
            _ => json!("x"),
        },
        Kind::Variable => json!("A=b"),
        Kind::AbsolutePath | Kind::MountDestination => json!("/x"),
        Kind::DevicePath => json!("/dev/x"),
        Kind::DeviceAccess => json!("rw"),
        Kind::PageSize => json!("2MB"),
        Kind::SpecVersion => json!("1.0"),
        Kind::CpuList => json!("0"),
        Kind::Boolean => json!(true),
        Kind::Integer(_, max) => json!(u64::try_from(max.min(7)).unwrap()),
        Kind::OneOf(names) | Kind::OneOfExcept(names, _) | Kind::OneOfOrIgnored(names) => json!(names.last()),
        Kind::Any => panic!("{path} is applied"),
    }
}

/// A value of `node` with every field that is applied; None if there is none. Without the hooks that run on
/// the host, which the shim removes.
fn complete(node: &Node, path: &str) -> Option<Value> {
    match node {
        Node::Leaf(leaf) => matches!(leaf.handling, Handling::Applied(_)).then(|| sample(path, leaf.kind)),
        Node::List(element, _) => complete(element, &format!("{path}[]")).map(|element| json!([element])),
        Node::Map(value) => complete(value, &format!("{path}.*")).map(|value| json!({"x.y": value})),
        Node::Object(fields) => {
            let fields = fields.iter().filter_map(|field| {
                let separator = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{separator}{}", field.name);
                let on_host = path.starts_with("hooks.") && !path.starts_with("hooks.startContainer");
                let value = if on_host {
                    None
                } else {
                    complete(&field.node, &path)
                }?;
                Some((field.name.to_owned(), value))
            });
            let object: serde_json::Map<_, _> = fields.collect();
            (!object.is_empty()).then(|| object.into())
        }
    }
}

/// The JSON pointer in a [`complete`] spec of the table's path `path`.
fn pointer(path: &str) -> String {
    format!(
        "/{}",
        path.replace(".*", ".x\u{0}y")
            .replace("[]", ".0")
            .replace('.', "/")
    )
    .replace('\u{0}', ".")
}

#[test]
fn oci_spec_reads_every_value_that_the_table_accepts() {
    let complete = complete(&SPEC, "").unwrap();
    let is_read = |spec: &Value, what: &str| {
        // The check refuses some combinations of values; what it accepts must be read.
        match prepare("a", spec.to_string().as_bytes(), NO_DISKS) {
            Ok(_) => true,
            Err(Error::Refused(_)) => false,
            // Of a disk, which has been read when it is looked for.
            Err(Error::BadSpec { field, .. }) if field.starts_with("linux.resources.blockIO.") => true,
            Err(error) => panic!("{what}: {error}"),
        }
    };
    assert!(is_read(&complete, "all fields"));
    let mut read = 0;
    for (path, leaf) in leaves(&SPEC, "") {
        let pointer = pointer(&path);
        if complete.pointer(&pointer).is_none() {
            continue;
        }
        if let Kind::Integer(min, max) = leaf.kind {
            let number = |number: i128| {
                i64::try_from(number).map_or_else(|_| json!(u64::try_from(number).unwrap()), |n| json!(n))
            };
            for value in [number(min), number(max)] {
                let mut spec = complete.clone();
                *spec.pointer_mut(&pointer).unwrap() = value.clone();
                read += usize::from(is_read(&spec, &format!("{path} = {value}")));
            }
        }
        let parents = pointer.match_indices('/').map(|(at, _)| &pointer[..at]);
        for removed in parents.chain([&*pointer]).filter(|removed| !removed.is_empty()) {
            let mut spec = complete.clone();
            *spec.pointer_mut(removed).unwrap() = Value::Null;
            read += usize::from(is_read(&spec, &format!("without {removed}")));
            let (parent, key) = removed.rsplit_once('/').unwrap();
            if key == "0" {
                spec = complete.clone();
                *spec.pointer_mut(parent).unwrap() = json!([]);
                read += usize::from(is_read(&spec, &format!("{parent} = []")));
            }
        }
    }
    assert!(read > 200, "{read}");
}
