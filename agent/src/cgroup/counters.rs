//! What the kernel counts of a container: the content of its cgroup's files, which the host parses, and the
//! number of OOM-killed processes, the only counter that is parsed here.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};

use nacre_protocol::guest::{CGROUP_COUNTERS, MAX_COUNTER_BYTES};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroup, is_removed};
use crate::async_fd;
use crate::error::Error;

/// Files whose content the host gets of a container besides [`CGROUP_COUNTERS`].
const MORE_FILES: [&str; 3] = ["rdma.current", "rdma.max", "cgroup.events"];

impl Cgroup {
    /// The content of the files in [`CGROUP_COUNTERS`] and [`MORE_FILES`] and of the hugetlb counters, by file
    /// name. Files of controllers that the guest's kernel does not have are missing from the result.
    pub fn stats(&self) -> Result<HashMap<String, Vec<u8>>, Error> {
        let mut files = HashMap::new();
        let mut add = |name: &str| {
            let path = self.directory().join(name);
            let mut bytes = Vec::new();
            let read =
                File::open(&path).and_then(|file| file.take(MAX_COUNTER_BYTES).read_to_end(&mut bytes));
            match read {
                Ok(_) => drop(files.insert(name.to_owned(), bytes)),
                // EOPNOTSUPP: the kernel does not measure pressure.
                // EISDIR: the container has created a cgroup whose name looks like a counter's.
                Err(error)
                    if is_removed(&error)
                        || matches!(
                            error.kind(),
                            io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory
                        ) => {}
                Err(error) => return Err(Error::file("reading", path)(error)),
            }
            Ok(())
        };
        CGROUP_COUNTERS
            .iter()
            .chain(&MORE_FILES)
            .try_for_each(|name| add(name))?;
        for entry in fs::read_dir(self.directory()).map_err(Error::file("listing", self.directory()))? {
            let entry = entry.map_err(Error::file("listing", self.directory()))?;
            match entry.file_name().to_str() {
                Some(name) if is_huge_page_counter(name) => add(name)?,
                _ => {}
            }
        }
        Ok(files)
    }

    /// Number of OOM-killed processes (`oom_kill` in memory.events); None without the memory controller.
    pub fn oom_kills(&self) -> Result<Option<u64>, Error> {
        let file = self.directory().join("memory.events");
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some(oom_kill_count(&text))),
            Err(error) if is_removed(&error) => Ok(None),
            Err(error) => Err(Error::file("reading", file)(error)),
        }
    }

    /// Opens memory.events to wait for changes; None without the memory controller.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, Error> {
        let path = self.directory().join("memory.events");
        match File::open(&path) {
            Ok(file) => async_fd::register_for(file, Interest::PRIORITY)
                .map(|file| Some(MemoryEvents(file)))
                .map_err(Error::file("registering with the event loop", path)),
            Err(error) if is_removed(&error) => Ok(None),
            Err(error) => Err(Error::file("opening", path)(error)),
        }
    }
}

/// True for `hugetlb.<size>.current`, `.max` and `.events` (Documentation/admin-guide/cgroup-v2.rst,
/// HugeTLB).
fn is_huge_page_counter(name: &str) -> bool {
    let size_and_kind = name
        .strip_prefix("hugetlb.")
        .and_then(|rest| rest.split_once('.'));
    size_and_kind.is_some_and(|(_, kind)| ["current", "max", "events"].contains(&kind))
}

/// The value of `oom_kill` in the text of memory.events; 0 if the line is missing.
fn oom_kill_count(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// A cgroup's open memory.events file, registered with the event loop.
pub struct MemoryEvents(AsyncFd<File>);

impl MemoryEvents {
    /// Waits for the next change of the file. Returns the number of OOM-killed processes.
    ///
    /// # Errors
    /// ENODEV if the cgroup was removed.
    pub async fn changed(&mut self) -> io::Result<u64> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        // Only what is read is reported as a change the next time.
        let mut text = String::new();
        self.0.get_ref().rewind()?;
        self.0.get_ref().read_to_string(&mut text)?;
        Ok(oom_kill_count(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kill_is_read_from_memory_events() {
        assert_eq!(
            oom_kill_count("low 0\nhigh 3\nmax 4\noom 2\noom_kill 2\noom_group_kill 0\n"),
            2
        );
        assert_eq!(oom_kill_count(""), 0);
    }

    #[test]
    fn hugetlb_counters_are_recognised_by_name() {
        assert!(is_huge_page_counter("hugetlb.2MB.current"));
        assert!(is_huge_page_counter("hugetlb.1GB.events"));
        assert!(!is_huge_page_counter("hugetlb.2MB.rsvd.max"));
        assert!(!is_huge_page_counter("memory.current"));
    }

    #[test]
    fn stats_has_only_existing_files() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup(directory.path().to_owned());
        assert!(cgroup.stats().unwrap().is_empty());
        assert_eq!(cgroup.oom_kills().unwrap(), None);
        for name in ["memory.current", "hugetlb.2MB.max", "cgroup.procs"] {
            fs::write(directory.path().join(name), "7\n").unwrap();
        }
        let files = cgroup.stats().unwrap();
        fs::create_dir(directory.path().join("hugetlb.x.current")).unwrap();
        assert_eq!(cgroup.stats().unwrap(), files);
        assert_eq!(files.len(), 2, "{files:?}");
        assert_eq!(files["memory.current"], b"7\n");
    }
}
