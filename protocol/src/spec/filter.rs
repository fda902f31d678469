//! Applies the field table to a spec: removes and reports what is ignored, and reports what is refused.
//! Called by shim and agent; never decides how a field is handled, which is in [`super::table`].

use serde_json::{Map, Value};

use super::devices::remove_disks;
use super::findings::{self, Findings, quoted, shown};
use super::mounts::filter_mount;
use super::resources;
use super::schema::{Field, Handling, Kind, Leaf, Node, join};
use super::table::{PROCESS, RESOURCES, SPEC};
use super::value::{is_set, type_error};

/// Checks `spec`, a whole config.json, and leaves in it only what is applied.
pub fn filter_spec(spec: &mut Value) -> Findings {
    let mut findings = Findings::default();
    remove_disks(spec, &mut findings);
    filter(&SPEC, spec, "", &mut findings);
    if findings.refused.is_empty() {
        check_command(&spec["process"], &mut findings);
        resources::check(&spec["linux"]["resources"], &mut findings);
    }
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        filter_mount(mount, &format!("mounts[{index}]"), &mut findings);
    }
    findings
}

/// As [`filter_spec`], of the `process` object of an Exec.
pub fn filter_process(process: &mut Value) -> Findings {
    let mut findings = Findings::default();
    filter(&PROCESS, process, "process", &mut findings);
    if findings.refused.is_empty() {
        check_command(process, &mut findings);
    }
    findings
}

/// As [`filter_spec`], of the `linux.resources` object of an Update.
pub fn filter_update(resources: &mut Value) -> Findings {
    let mut findings = Findings::default();
    filter(&RESOURCES, resources, "linux.resources", &mut findings);
    if findings.refused.is_empty() {
        resources::check(resources, &mut findings);
    }
    // Kubernetes sends all resources with each change.
    let devices = resources
        .as_object_mut()
        .and_then(|object| object.remove("devices"));
    if devices.is_some_and(|devices| is_set(&devices, true)) {
        let reason = "device rules cannot change after Create";
        findings.ignore("linux.resources.devices", reason);
    }
    findings
}

fn check_command(process: &Value, findings: &mut Findings) {
    let command = process["args"].get(0).and_then(Value::as_str).unwrap_or_default();
    if command.is_empty() {
        findings.refuse("process.args", "the first element must be a command");
    }
}

/// Filters `value` at `path`. Returns false if it must be removed from its parent.
fn filter(node: &Node, value: &mut Value, path: &str, findings: &mut Findings) -> bool {
    let expected = |what: &str, findings: &mut Findings, value: &Value| {
        let path = if path.is_empty() { "config.json" } else { path };
        findings.refuse(path, format!("expected {what}, got {}", shown(value)));
        false
    };
    match (node, value) {
        (Node::Leaf(leaf), value) => filter_leaf(*leaf, value, path, findings),
        (Node::Object(fields), Value::Object(object)) => {
            filter_object(fields, object, path, findings);
            has_applied_leaf(node)
        }
        (Node::List(element, max), Value::Array(elements)) => {
            if elements.len() > *max {
                let reason = format!("expected at most {max} elements, got {}", elements.len());
                findings.refuse(path, reason);
                return false;
            }
            let mut index = 0;
            elements.retain_mut(|value| {
                let path = format!("{path}[{index}]");
                index += 1;
                filter(element, value, &path, findings)
            });
            has_applied_leaf(node)
        }
        (Node::Map(element), Value::Object(object)) => {
            object.retain(|key, value| {
                let path = format!("{path}[{}]", quoted(key));
                !value.is_null() && filter(element, value, &path, findings)
            });
            has_applied_leaf(node)
        }
        (Node::Object(_) | Node::Map(_), value) => expected("an object", findings, value),
        (Node::List(..), value) => expected("a list", findings, value),
    }
}

/// False if nothing below `node` is ever applied. Then an empty object or list of it is removed, too, such as
/// `{"blockIO": {"weightDevice": []}}`.
fn has_applied_leaf(node: &Node) -> bool {
    match node {
        Node::Leaf(leaf) => matches!(leaf.handling, Handling::Applied(_)),
        Node::List(element, _) | Node::Map(element) => has_applied_leaf(element),
        Node::Object(fields) => fields.iter().any(|field| has_applied_leaf(&field.node)),
    }
}

fn filter_object(fields: &[Field], object: &mut Map<String, Value>, path: &str, findings: &mut Findings) {
    object.retain(|key, value| {
        let Some(field) = fields.iter().find(|field| field.name == key) else {
            findings.ignore(join(path, &findings::key(key)), "not in the OCI specification");
            return false;
        };
        // Some generators write null for a field that is not set.
        !value.is_null() && filter(&field.node, value, &join(path, key), findings)
    });
    for field in fields.iter().filter(|field| field.is_required) {
        if !object.contains_key(field.name) {
            let path = join(path, field.name);
            // A field that was refused above is not missing.
            if !findings.refused.iter().any(|finding| finding.path == path) {
                findings.refuse(path, "is missing");
            }
        }
    }
}

fn filter_leaf(leaf: Leaf, value: &Value, path: &str, findings: &mut Findings) -> bool {
    match leaf.handling {
        Handling::Applied(_) => {
            let Some(reason) = type_error(leaf.kind, value) else {
                return true;
            };
            if matches!(leaf.kind, Kind::OneOfOrIgnored(_)) && value.is_string() {
                findings.ignore(path, reason);
            } else {
                findings.refuse(path, reason);
            }
        }
        Handling::Ignored(reason) if is_set(value, false) => findings.ignore(path, reason),
        Handling::Refused(reason) if is_set(value, false) => findings.refuse(path, reason),
        Handling::RefusedWithZero(reason) if is_set(value, true) => findings.refuse(path, reason),
        Handling::Ignored(_) | Handling::Refused(_) | Handling::RefusedWithZero(_) => {}
    }
    false
}
