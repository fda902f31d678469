//! Which cgroup a process is in, and moving one to another. Called by the sandbox for the shim's own.

use std::fs;
use std::path::{Path, PathBuf};

use nacre_protocol::proc_cgroup::cgroup2_path;

use super::{Error, at, root};
use crate::sys;

/// The directory of this process's cgroup.
///
/// # Errors
/// As [`root`]; [`Error::File`] if /proc/self/cgroup can't be read.
pub fn own_cgroup() -> Result<PathBuf, Error> {
    let file = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(file).map_err(at(file))?;
    Ok(root()?.join(cgroup2_path(&text).unwrap_or_default()))
}

/// Moves the process `pid` into the first of the cgroups `to` that accepts it. In a child, because the write
/// waits for an RCU grace period.
///
/// # Errors
/// Why the last one did not accept it.
pub async fn move_process(pid: u32, to: Vec<PathBuf>) -> Result<(), String> {
    let moved = sys::in_child(move || {
        let mut moved = Ok(());
        for cgroup in to {
            let file = cgroup.join("cgroup.procs");
            moved = fs::write(&file, pid.to_string()).map_err(|error| format!("{}: {error}", file.display()));
            if moved.is_ok() {
                break;
            }
        }
        moved
    });
    moved.await.unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_goes_to_the_first_cgroup_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        let [none, first, second] = ["none", "first", "second"].map(|name| directory.path().join(name));
        for cgroup in [&first, &second] {
            fs::create_dir(cgroup).unwrap();
        }
        let to = vec![none.clone(), first.clone(), second.clone()];
        assert_eq!(move_process(7, to).await, Ok(()));
        assert_eq!(fs::read_to_string(first.join("cgroup.procs")).unwrap(), "7");
        assert!(!second.join("cgroup.procs").exists());
        let refused = move_process(7, vec![none]).await.unwrap_err();
        assert!(refused.contains("none/cgroup.procs"), "{refused}");
    }
}
