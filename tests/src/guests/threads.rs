//! What the threads of a VMM have done, as the host's kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// System calls of threads that read and that write, and how often they have slept.
pub type Counts = [u64; 3];

/// The counts of each thread of process `pid`, by its name; the sums of those with the same name.
///
/// # Errors
/// If a file of /proc can't be read. A kernel that does not count system calls has 0 of them.
pub fn counts(pid: u32) -> Result<BTreeMap<String, Counts>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let path = task.path();
        let name = fs::read_to_string(path.join("comm"))?.trim().to_owned();
        let own = [
            number(&path.join("io"), "syscr:").unwrap_or_default(),
            number(&path.join("io"), "syscw:").unwrap_or_default(),
            number(&path.join("status"), "voluntary_ctxt_switches:")?,
        ];
        let sum: &mut Counts = threads.entry(name).or_default();
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    Ok(threads)
}

/// The number after `key` in a file of /proc.
fn number(file: &Path, key: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    Ok(value
        .with_context(|| format!("no {key} in {}", file.display()))?
        .trim()
        .parse()?)
}
