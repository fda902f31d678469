//! From the specification's JSON to that of the libraries that read it (oci-spec, libcontainer), where they differ: what may
//! be missing, names, an order.

use serde_json::{Value, json};

/// Rewrites a whole spec.
pub fn translate(spec: &mut Value) {
    if let Some(process) = spec.get_mut("process") {
        translate_process(process);
    }
    if let Some(resources) = spec.pointer_mut("/linux/resources") {
        translate_resources(resources);
    }
    swap_masks(spec);
    for device in list(spec, "/linux/devices") {
        // A fifo has no numbers.
        default(device, "major");
        default(device, "minor");
    }
}

/// Rewrites a `process` object.
pub fn translate_process(process: &mut Value) {
    if let Some(object) = process.as_object_mut() {
        let user = object.entry("user").or_insert_with(|| json!({}));
        default(user, "uid");
        default(user, "gid");
    }
    if let Some(priority) = process.get_mut("ioPriority") {
        default(priority, "priority");
    }
    for flag in list(process, "/scheduler/flags") {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// Rewrites a `linux.resources` object: without a limit, the library takes 0 for it.
pub fn translate_resources(resources: &mut Value) {
    if resources
        .get("pids")
        .is_some_and(|pids| pids.get("limit").is_none())
        && let Some(resources) = resources.as_object_mut()
    {
        resources.remove("pids");
    }
}

/// Of a comparison under a mask, the specification and runc have the mask first; libcontainer has it second.
fn swap_masks(spec: &mut Value) {
    for call in list(spec, "/linux/seccomp/syscalls") {
        for arg in list(call, "/args") {
            if arg["op"] == "SCMP_CMP_MASKED_EQ"
                && let Some(arg) = arg.as_object_mut()
            {
                let mask = arg.remove("value").unwrap_or_default();
                let wanted = arg.insert("valueTwo".to_owned(), mask);
                arg.insert("value".to_owned(), wanted.unwrap_or_else(|| json!(0)));
            }
        }
    }
}

fn list<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value
        .pointer_mut(pointer)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// A number that is not there is 0.
fn default(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.entry(key).or_insert_with(|| json!(0));
    }
}
