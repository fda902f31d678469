//! What this host's kernel counts of a pod: the content of its cgroup's files, by name, in the same form as
//! the agent returns those of a container. Called by the sandbox for the pod's counters. Parses nothing.

use std::fs::File;
use std::io::Read as _;

use super::Cgroup;
use crate::guest::CgroupFiles;

/// Usage, limits, events and pressure of each controller.
const FILES: [&str; 15] = [
    "cpu.pressure",
    "cpu.stat",
    "io.pressure",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "memory.swap.peak",
    "pids.current",
    "pids.max",
];
/// Most bytes that are read of one file.
const MAX_FILE: u64 = 64 * 1024;

impl Cgroup {
    /// The content of the files. Those of controllers that are not enabled here are missing.
    pub fn counters(&self) -> CgroupFiles {
        let read = |name: &&str| {
            let mut bytes = Vec::new();
            let file = File::open(self.path().join(name)).ok()?;
            file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
            Some(((*name).to_owned(), bytes))
        };
        FILES.iter().filter_map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_do_not_exist_are_missing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("memory.current"), "5\n").unwrap();
        std::fs::write(directory.path().join("cgroup.procs"), "1\n").unwrap();
        let cgroup = Cgroup {
            root: directory.path().to_owned(),
            path: directory.path().to_owned(),
        };
        let want = CgroupFiles::from([("memory.current".to_owned(), b"5\n".to_vec())]);
        assert_eq!(cgroup.counters(), want);
    }
}
