//! `nacre ps` and `nacre failures`: lists of pods and of failure records, as a table or as JSON.

use std::path::Path;

use anyhow::Result;
use nacre_protocol::state::Failure;
use serde_json::{Value, json};

use crate::pods::{self, Listing, Unreadable};
use crate::process_memory::PodProcesses;
use crate::text::{age, bytes, mib, printable, table};

/// The pods that have a directory in `root`, oldest first.
///
/// # Errors
/// If the state directory can't be listed.
pub fn pods(root: &Path, json: bool) -> Result<String> {
    let Listing {
        entries,
        mut unreadable,
    } = pods::all(root)?;
    let mut rows = vec![heading([
        "ID",
        "NAMESPACE",
        "STATE",
        "VMM PID",
        "VCPUS",
        "VM MEMORY",
        "USED",
        "PRIVATE",
        "SHARED",
        "AGE",
    ])];
    let mut list = Vec::new();
    for found in entries {
        let pod = &found.pod;
        let memory = pods::memory(pod).unwrap_or_else(|error| {
            unreadable.push(error);
            None
        });
        let processes = PodProcesses::of(pod);
        let mapped = processes.together();
        let seconds = pods::seconds_since(pod.created);
        let state = pods::state(pod);
        rows.push(vec![
            pod.id.clone(),
            pod.namespace.clone(),
            state.clone(),
            pod.vmm_pid.map_or("-".to_owned(), |pid| pid.to_string()),
            pod.size.map_or("-".to_owned(), |size| size.vcpus.to_string()),
            pod.size.map_or("-".to_owned(), |size| mib(size.memory_mib)),
            memory.map_or("-".to_owned(), bytes),
            mapped.map_or("-".to_owned(), |mapped| bytes(mapped.private_bytes)),
            mapped.map_or("-".to_owned(), |mapped| bytes(mapped.shared_bytes)),
            age(seconds),
        ]);
        list.push(json!({
            "id": pod.id, "namespace": pod.namespace, "state": state, "vmm_pid": pod.vmm_pid,
            "shim_pid": pod.shim_pid, "size": pod.size, "memory_bytes": memory, "processes": processes,
            "age_seconds": seconds, "cgroup": pod.cgroup,
        }));
    }
    Ok(if json {
        json_list(list, &unreadable)
    } else {
        table(&rows) + &unreadable_lines(&unreadable)
    })
}

/// The failure records below `root`, newest first.
///
/// # Errors
/// If the directory of failure records can't be listed.
pub fn failures(root: &Path, json: bool) -> Result<String> {
    let Listing { entries, unreadable } = pods::failures(root)?;
    if json {
        let list = entries.iter().map(serde_json::to_value);
        return Ok(json_list(list.collect::<Result<_, _>>()?, &unreadable));
    }
    let mut rows = vec![heading(["ID", "NAMESPACE", "AGE", "STEP", "REASON"])];
    rows.extend(entries.into_iter().map(failure_row));
    Ok(table(&rows) + &unreadable_lines(&unreadable))
}

fn failure_row(failure: Failure) -> Vec<String> {
    let ago = age(pods::seconds_since(failure.time));
    vec![failure.id, failure.namespace, ago, failure.step, failure.reason]
}

fn heading<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(String::from).to_vec()
}

/// A JSON list of `entries`, followed by an object with `file` and `error` for each unreadable file.
fn json_list(mut entries: Vec<Value>, unreadable: &[Unreadable]) -> String {
    entries.extend(unreadable.iter().map(|unreadable| json!(unreadable)));
    format!("{:#}\n", Value::from(entries))
}

/// One line for each unreadable file, with its error.
pub fn unreadable_lines(unreadable: &[Unreadable]) -> String {
    unreadable
        .iter()
        .map(|Unreadable { file, error }| {
            let file = printable(&file.to_string_lossy());
            format!("cannot read {file}: {}\n", printable(error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nacre_protocol::state::{FAILURES_DIR, POD_FILE};

    use super::*;
    use crate::pods::tests::example;

    #[test]
    fn lists_as_table_and_as_json() {
        let root = example();
        let table = pods(root.path(), false).unwrap();
        assert!(table.starts_with("ID     NAMESPACE"), "{table}");
        assert!(table.contains("web-1  default    running"), "{table}");
        assert!(table.contains("  2      768.0 MiB  "), "{table}");
        let list: Value = serde_json::from_str(&pods(root.path(), true).unwrap()).unwrap();
        assert_eq!(list[0]["id"], "web-2");
        assert!(failures(root.path(), false).unwrap().contains("SIGKILL"));
        let list: Value = serde_json::from_str(&failures(root.path(), true).unwrap()).unwrap();
        assert_eq!(list[0]["step"], "running");
    }

    #[test]
    fn an_unreadable_pod_is_a_line_with_its_error_beside_the_other_pods() {
        let root = example();
        let file = root.path().join("1").join(POD_FILE);
        fs::write(&file, "{\"id\": \u{1b}").unwrap();
        let shown = pods(root.path(), false).unwrap();
        assert!(shown.contains("web-2") && !shown.contains("web-1"), "{shown}");
        let line = shown.lines().last().unwrap();
        assert!(
            line.starts_with(&format!("cannot read {}: ", file.display())) && line.contains("line 1"),
            "{shown}"
        );
        let list: Vec<Value> = serde_json::from_str(&pods(root.path(), true).unwrap()).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1]["file"], file.to_str().unwrap());
        assert!(list[1]["error"].as_str().unwrap().contains("line 1"));
    }

    #[test]
    fn an_unreadable_failure_record_does_not_hide_the_others() {
        let root = example();
        fs::write(root.path().join(FAILURES_DIR).join("bad.json"), "{}").unwrap();
        let shown = failures(root.path(), false).unwrap();
        assert!(
            shown.contains("SIGKILL") && shown.contains("bad.json: missing field"),
            "{shown}"
        );
    }
}
