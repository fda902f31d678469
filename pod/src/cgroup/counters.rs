//! What this host's kernel counts of a pod: the content of its cgroup's files, by name, in the same form as
//! the agent returns those of a container. Called by the sandbox for the pod's counters. Parses nothing.

use std::fs::File;
use std::io::Read as _;

use nacre_protocol::guest::{CGROUP_COUNTERS, MAX_COUNTER_BYTES};

use super::Cgroup;
use crate::guest::CgroupFiles;

impl Cgroup {
    /// The content of the files. Those of controllers that are not enabled here are missing.
    pub fn counters(&self) -> CgroupFiles {
        let read = |name: &&str| {
            let mut bytes = Vec::new();
            let file = File::open(self.path().join(name)).ok()?;
            file.take(MAX_COUNTER_BYTES).read_to_end(&mut bytes).ok()?;
            Some(((*name).to_owned(), bytes))
        };
        CGROUP_COUNTERS.iter().filter_map(read).collect()
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
