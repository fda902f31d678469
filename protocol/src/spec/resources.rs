//! Checks of `linux.resources` that the table cannot express, because they concern several fields or the keys
//! of a map. Called by the filter on resources that the table accepts.

use serde_json::Value;

use super::findings::{Findings, quoted};

/// Most entries of `unified`.
const MAX_UNIFIED: usize = 256;
/// Longest file name in `unified`, bytes.
const MAX_FILE_NAME: usize = 128;
/// The `cgroup.*` files that `unified` may set. The agent uses the others itself, or they are not limits.
const CORE_FILES: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// Checks `resources`, whose path is `linux.resources`.
pub fn check(resources: &Value, findings: &mut Findings) {
    check_swap(&resources["memory"], findings);
    check_unified(&resources["unified"], findings);
}

/// `memory.swap` is the limit of memory and swap together; cgroup v2 limits swap alone, so that it takes both
/// to compute.
fn check_swap(memory: &Value, findings: &mut Findings) {
    let number = |key: &str| memory[key].as_i64().unwrap_or(0);
    let (swap, limit) = (number("swap"), number("limit"));
    let path = "linux.resources.memory.swap";
    if swap <= 0 {
        return;
    }
    if limit <= 0 {
        findings.refuse(
            path,
            "is the limit of memory and swap together and needs memory.limit, which is not set",
        );
    } else if swap < limit {
        let reason = format!("expected at least memory.limit, {limit}, got {swap}");
        findings.refuse(path, reason);
    }
}

fn check_unified(unified: &Value, findings: &mut Findings) {
    let Some(unified) = unified.as_object() else {
        return;
    };
    let path = "linux.resources.unified";
    if unified.len() > MAX_UNIFIED {
        let reason = format!("expected at most {MAX_UNIFIED} files, got {}", unified.len());
        findings.refuse(path, reason);
    }
    for name in unified.keys() {
        if let Some(reason) = file_error(name) {
            findings.refuse(format!("{path}[{}]", quoted(name)), reason);
        }
    }
}

/// Why `name` cannot be the file of a limit; None if it can.
fn file_error(name: &str) -> Option<&'static str> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let (controller, rest) = name.split_once('.').unwrap_or_default();
    if controller.is_empty() || rest.is_empty() || name.len() > MAX_FILE_NAME || !name.chars().all(is_allowed)
    {
        return Some("expected a file of a controller, such as memory.high");
    }
    (controller == "cgroup" && !CORE_FILES.contains(&name)).then_some("is not a limit that a spec may set")
}
