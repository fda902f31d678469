//! ContainerStats: the counters of a container. They are kept while those of a pod's containers are summed,
//! so they are bounded here; the reader parses them.

use std::collections::HashMap;

use nacre_protocol::guest::MAX_COUNTER_BYTES;

use super::{CallError, Guest, context, reference};

/// Files of a container's cgroup in the guest, by name.
pub type CgroupFiles = HashMap<String, Vec<u8>>;

/// Most files that are kept; the agent sends 18, and 3 for each size of huge pages.
const MAX_FILES: usize = 64;
/// Longest name of a file, bytes.
const MAX_NAME: usize = 64;

impl Guest {
    /// Reads the files of a container's cgroup.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stats(&self, id: &str) -> Result<CgroupFiles, CallError> {
        let container = reference(id);
        let read = self.client.container_stats(context(), &container);
        Ok(bounded(self.within_deadline(read).await?.files))
    }
}

/// Those of `files` that can be a cgroup's, each cut where the agent cuts it.
fn bounded(files: CgroupFiles) -> CgroupFiles {
    let max_bytes = usize::try_from(MAX_COUNTER_BYTES).unwrap_or(usize::MAX);
    let cut = |(name, mut bytes): (String, Vec<u8>)| {
        bytes.truncate(max_bytes);
        // What is cut off must not stay allocated.
        bytes.shrink_to_fit();
        (name, bytes)
    };
    let named = files.into_iter().filter(|(name, _)| is_name(name));
    named.take(MAX_FILES).map(cut).collect()
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_';
    name.len() <= MAX_NAME && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_hostile_agent_are_bounded() {
        let mut files: CgroupFiles = (0..1000)
            .map(|n| (format!("hugetlb.{n}.current"), vec![b'1'; 4096]))
            .collect();
        files.insert("\x1b[31m".into(), b"1\n".to_vec());
        files.insert("x".repeat(3 << 20), b"1\n".to_vec());
        let kept = bounded(files);
        assert_eq!(kept.len(), MAX_FILES);
        assert!(kept.keys().all(|name| name.starts_with("hugetlb.")));

        let long = CgroupFiles::from([("memory.stat".into(), vec![b'a'; 3 << 20])]);
        let kept = bounded(long);
        assert_eq!(kept["memory.stat"].len() as u64, MAX_COUNTER_BYTES);
        assert!(kept["memory.stat"].capacity() as u64 <= MAX_COUNTER_BYTES * 2);
    }

    #[test]
    fn counters_of_a_cgroup_are_kept() {
        let names = nacre_protocol::guest::CGROUP_COUNTERS;
        let names = names.iter().chain(&["rdma.max", "hugetlb.1GB.events"]);
        let files: CgroupFiles = names.map(|name| ((*name).to_owned(), b"5\n".to_vec())).collect();
        assert_eq!(bounded(files.clone()), files);
    }
}
