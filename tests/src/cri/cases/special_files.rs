//! Files of volumes that are more than their bytes: files whose content the host's kernel makes.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cri::node::Node;
use crate::cri::{Case, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[calls("volume: files of procfs and sysfs", files_of_the_kernel)];

fn files_of_the_kernel(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let mounts = json!({"mounts": [
        {"container_path": "/version", "host_path": "/proc/version", "readonly": true},
        {"container_path": "/kernel", "host_path": "/sys/kernel", "readonly": true},
        {"container_path": "/group", "host_path": "/sys/fs/cgroup", "readonly": true},
    ]});
    let script = "cat /version; stat -c %s /version; cat /kernel/mm/transparent_hugepage/enabled
        head -c 5 /version; dd if=/version bs=3 skip=1 count=2 2>/dev/null; wc -c </group/cgroup.controllers
        while read line; do echo $line; done </version";
    let outcome = pod.run(script, mounts)?;
    let host = fs::read_to_string("/proc/version")?;
    ensure!(outcome.stdout.starts_with(&host), "{outcome}");
    pod.remove()?;
    Ok(outcome)
}
