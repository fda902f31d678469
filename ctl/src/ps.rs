//! `nacre ps` and `nacre failures`.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::pods;
use crate::text::{age, bytes, table};

/// The pods that are there, as a table or as JSON.
///
/// # Errors
/// Where the state can't be read.
pub fn pods(root: &Path, json: bool) -> Result<String> {
    let mut rows = vec![
        ["ID", "NAMESPACE", "STATE", "VMM PID", "MEMORY", "AGE"]
            .map(String::from)
            .to_vec(),
    ];
    let mut list = Vec::new();
    for found in pods::all(root)? {
        let pod = &found.pod;
        let memory = pods::memory(pod)?;
        let seconds = pods::seconds_since(pod.created);
        let state = pods::state(pod);
        rows.push(vec![
            pod.id.clone(),
            pod.namespace.clone(),
            state.clone(),
            pod.vmm_pid.map_or("-".to_owned(), |pid| pid.to_string()),
            memory.map_or("-".to_owned(), bytes),
            age(seconds),
        ]);
        list.push(json!({
            "id": pod.id, "namespace": pod.namespace, "state": state, "vmm_pid": pod.vmm_pid,
            "shim_pid": pod.shim_pid, "memory_bytes": memory, "age_seconds": seconds, "cgroup": pod.cgroup,
        }));
    }
    Ok(if json {
        format!("{:#}\n", serde_json::Value::from(list))
    } else {
        table(&rows)
    })
}

/// The pods that failed, as a table or as JSON.
///
/// # Errors
/// Where the state can't be read.
pub fn failures(root: &Path, json: bool) -> Result<String> {
    let found = pods::failures(root)?;
    if json {
        return Ok(format!("{:#}\n", serde_json::to_value(&found)?));
    }
    let mut rows = vec![
        ["ID", "NAMESPACE", "AGO", "STEP", "REASON"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(found.iter().map(|failure| {
        vec![
            failure.id.clone(),
            failure.namespace.clone(),
            age(pods::seconds_since(failure.time)),
            failure.step.clone(),
            failure.reason.clone(),
        ]
    }));
    Ok(table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::example;

    #[test]
    fn lists_as_table_and_as_json() {
        let root = example();
        let table = pods(root.path(), false).unwrap();
        assert!(table.starts_with("ID     NAMESPACE"), "{table}");
        assert!(table.contains("web-1  default    running"), "{table}");
        let list: serde_json::Value = serde_json::from_str(&pods(root.path(), true).unwrap()).unwrap();
        assert_eq!(list[0]["id"], "web-2");
        assert!(failures(root.path(), false).unwrap().contains("SIGKILL"));
        let list: serde_json::Value = serde_json::from_str(&failures(root.path(), true).unwrap()).unwrap();
        assert_eq!(list[0]["step"], "running");
    }
}
