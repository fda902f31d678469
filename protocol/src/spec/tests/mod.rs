//! Tests of the table and of its filter.

mod checked;
mod fields;
mod mounts;
mod resources;
mod specs;

use serde_json::{Value, json};

use super::filter::{filter_process, filter_spec, filter_update};
use super::*;

/// A spec with the required fields only.
fn minimal() -> Value {
    json!({"ociVersion": "1.2.0", "process": {"args": ["a"], "cwd": "/"}, "root": {"path": "rootfs"},
        "linux": {}})
}

/// The minimal spec with `value` at the table's path `path`.
fn with(path: &str, value: Value) -> Value {
    fn put(target: &mut Value, path: &[&str], value: Value) {
        let Some((first, rest)) = path.split_first() else {
            *target = value;
            return;
        };
        let lists = first.matches("[]").count();
        let mut next = &mut *target;
        let name = first.trim_end_matches("[]");
        if next.is_null() {
            *next = json!({});
        }
        next = &mut next[if name == "*" { "x.any" } else { name }];
        for _ in 0..lists {
            if !next.is_array() {
                *next = json!([null]);
            }
            next = &mut next[0];
        }
        put(next, rest, value);
    }
    let mut spec = minimal();
    if path.starts_with("mounts[].") {
        spec["mounts"] = json!([{"type": "proc", "destination": "/x"}]);
    }
    if path == "linux.resources.memory.swap" {
        spec["linux"]["resources"]["memory"]["limit"] = json!(1);
    }
    put(&mut spec, &path.split('.').collect::<Vec<_>>(), value);
    spec
}

/// The JSON path of the table's path `path` in a spec made by [`with`].
fn concrete(path: &str) -> String {
    path.replace("[]", "[0]").replace(".*", "[\"x.any\"]")
}

/// A value that the field at `path` accepts.
fn sample(path: &str, kind: Kind) -> Value {
    match kind {
        Kind::String if path == "mounts[].type" => json!("tmpfs"),
        Kind::String | Kind::Any => json!("x"),
        Kind::AbsolutePath | Kind::MountDestination => json!("/x"),
        Kind::Variable => json!("NAME=a=b"),
        Kind::SpecVersion => json!("1.0"),
        Kind::DevicePath => json!("/dev/x"),
        Kind::DeviceAccess => json!("rw"),
        Kind::PageSize => json!("2MB"),
        Kind::CpuList => json!("0"),
        Kind::Boolean => json!(true),
        Kind::Integer(_, max) => json!(u64::try_from(max.min(7)).unwrap()),
        Kind::OneOf(names) | Kind::OneOfExcept(names, _) | Kind::OneOfOrIgnored(names) => json!(names.last()),
    }
}
