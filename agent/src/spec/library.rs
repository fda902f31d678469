//! Converts checked documents to the types of oci-spec, which differ from the OCI specification in a few
//! fields: they require optional ones, or use other names.

use nacre_protocol::spec::{Checked, CheckedProcess, CheckedResources, CheckedSpec};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::Error;

/// Converts a whole `config.json`.
pub fn spec(checked: CheckedSpec) -> Result<Spec, Error> {
    convert("config.json", checked, translate)
}

/// Converts a `process` object.
pub fn process(checked: CheckedProcess) -> Result<Process, Error> {
    convert("process", checked, translate_process)
}

/// Converts a `linux.resources` object.
pub fn resources(checked: CheckedResources) -> Result<LinuxResources, Error> {
    convert("linux.resources", checked, translate_resources)
}

fn convert<D, T: DeserializeOwned>(
    field: &'static str,
    checked: Checked<D>,
    translate: fn(&mut Value),
) -> Result<T, Error> {
    let (mut value, _) = checked.into_parts();
    translate(&mut value);
    serde_json::from_value(value).map_err(|error| Error::bad_spec(field, error.to_string()))
}

fn translate(spec: &mut Value) {
    if let Some(process) = spec.get_mut("process") {
        translate_process(process);
    }
    if let Some(resources) = spec.pointer_mut("/linux/resources") {
        translate_resources(resources);
    }
    for device in elements(spec, "/linux/devices") {
        // A FIFO has no device number.
        default_to_zero(device, "major");
        default_to_zero(device, "minor");
    }
}

fn translate_process(process: &mut Value) {
    if let Some(object) = process.as_object_mut() {
        let user = object.entry("user").or_insert_with(|| json!({}));
        default_to_zero(user, "uid");
        default_to_zero(user, "gid");
    }
    if let Some(priority) = process.get_mut("ioPriority") {
        default_to_zero(priority, "priority");
    }
    for flag in elements(process, "/scheduler/flags") {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// oci-spec reads a missing `pids.limit` as 0.
fn translate_resources(resources: &mut Value) {
    if resources
        .get("pids")
        .is_some_and(|pids| pids.get("limit").is_none())
        && let Some(resources) = resources.as_object_mut()
    {
        resources.remove("pids");
    }
}

fn elements<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value
        .pointer_mut(pointer)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Sets `key` to 0 if it is missing.
fn default_to_zero(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.entry(key).or_insert_with(|| json!(0));
    }
}
