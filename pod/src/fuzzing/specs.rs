//! The targets of an OCI spec: the table's check, and what the engine reads from a spec and plans.

use std::path::Path;

use nacre_fuzzing::Input;
use nacre_protocol::spec::{Checked, CheckedSpec, Findings, Refused, check, check_process, check_resources};

use crate::annotations;
use crate::bundle::{Pod, plan};
use crate::pod_spec::PodSpec;

/// The first byte chooses the document.
pub fn spec(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u8() % 4;
    let json = input.0;
    match kind {
        0 => drop(checked_twice(json, check_process)),
        1 => drop(checked_twice(json, check_resources)),
        kind => {
            if let Ok(spec) = checked_twice(json, check) {
                plan_container(json, spec, kind == 2);
            }
        }
    }
}

/// Checks `json`. The agent checks what is left of it by the same table, and must find nothing more.
fn checked_twice<D: PartialEq + std::fmt::Debug>(
    json: &[u8],
    check: fn(&[u8]) -> Result<Checked<D>, Refused>,
) -> Result<Checked<D>, Refused> {
    let checked = check(json)?;
    let left = serde_json::to_vec(checked.value()).unwrap();
    if left.len() <= nacre_protocol::spec::MAX_SPEC {
        let again = check(&left).unwrap();
        assert_eq!(again.value(), checked.value());
        assert!(again.ignored().is_empty(), "{:?}", again.ignored());
    }
    Ok(checked)
}

/// Plans the container of `spec`, as the first one of its pod or as a later one. What is planned for the guest passes
/// the agent's check.
fn plan_container(json: &[u8], spec: CheckedSpec, is_first: bool) {
    let pod_spec = PodSpec::from_oci(json);
    let pod = Pod {
        pid: if is_first { 0 } else { 7 },
        sandbox: if is_first { "c" } else { "sandbox" },
        spec: &pod_spec,
        own_pids: &["other".to_owned()],
        shares_pids: false,
        writable_layer: None,
        is_same: |a, b| a == b,
    };
    if let Ok(plan) = plan("c", Path::new("/bundle"), spec, Vec::new(), pod) {
        let guest_spec = serde_json::to_vec(&plan.guest_spec).unwrap();
        let checked = check(&guest_spec).unwrap();
        assert_eq!(checked.value(), &plan.guest_spec);
    }
}

/// What `start` reads from a config.json that nothing has checked yet.
pub fn pod_spec(data: &[u8]) {
    // Refused roles are reported by Create.
    let _ = annotations::role_in(data);
    let spec = PodSpec::from_oci(data);
    let _ = spec.guest_hostname();
    let value: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
    let annotations = &value["annotations"];
    annotations::check(annotations, &mut Findings::default());
    let _ = annotations::size(annotations);
}
