//! Counts what the host's kernel keeps, so that a test that makes many pods finds what each leaves behind
//! although nothing names it: a namespace without a file, a socket, a page of shared memory. Called by the CRI
//! suite between rounds of pods. [`crate::leaks`] compares the objects that have names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::containerd::ctr::output;
use crate::leaks::walk;

/// Directories in which all files are counted.
const DIRECTORIES: [&str; 2] = ["/run", "/dev/shm"];
/// A directory in which only its own entries are counted: in the lab they are this machine's, too, and to walk through
/// a hundred thousand files takes all descriptors of the server that shares them.
const SHARED_DIRECTORY: &str = "/tmp";

/// Kinds of kernel objects, as /proc/slabinfo names them. A kernel that merges a kind with others does not list
/// it.
const SLABS: [&str; 9] = [
    "net_namespace",
    "mnt_cache",
    "task_struct",
    "signal_cache",
    "mm_struct",
    "sock_inode_cache",
    "TUN",
    "kvm_vcpu",
    "nf_conntrack",
];

/// A figure that grows by this many KiB with each pod is a leak; less is what the kernel caches.
const KIB_PER_POD: u64 = 512;

/// Figures of the host: counts of objects, and KiB of memory.
#[derive(Debug)]
pub struct Census {
    counts: BTreeMap<String, u64>,
    kib: BTreeMap<&'static str, u64>,
}

impl Census {
    /// Counts what exists now.
    ///
    /// # Errors
    /// If a figure can't be read.
    pub fn take() -> Result<Self> {
        let mut counts = BTreeMap::new();
        for directory in DIRECTORIES {
            let mut files = Vec::new();
            walk(Path::new(directory), &mut files, false);
            counts.insert(format!("files in {directory}"), u64::try_from(files.len())?);
        }
        let entries = fs::read_dir(SHARED_DIRECTORY)?.count();
        counts.insert(format!("files in {SHARED_DIRECTORY}"), u64::try_from(entries)?);
        for (name, file) in [
            ("mounts", "/proc/self/mountinfo"),
            ("Unix sockets", "/proc/net/unix"),
        ] {
            counts.insert(
                name.to_owned(),
                u64::try_from(fs::read_to_string(file)?.lines().count())?,
            );
        }
        let links = fs::read_dir("/sys/class/net")?.count();
        counts.insert("links".to_owned(), u64::try_from(links)?);
        let mut tc = Command::new("tc");
        tc.args(["qdisc", "show"]);
        let qdiscs = output(tc)?.success()?.lines().count();
        counts.insert("queueing disciplines".to_owned(), u64::try_from(qdiscs)?);
        let cgroups = number_after(
            &fs::read_to_string("/sys/fs/cgroup/cgroup.stat")?,
            "nr_descendants ",
        )?;
        counts.insert("cgroups".to_owned(), cgroups);
        let slabs = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
        for name in SLABS {
            if let Ok(objects) = number_after(&slabs, &format!("{name} ")) {
                counts.insert(format!("{name} objects"), objects);
            }
        }
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kib = ["SUnreclaim", "Shmem", "PageTables", "KernelStack", "Percpu"]
            .into_iter()
            .map(|name| Ok((name, number_after(&memory, &format!("{name}:"))?)));
        Ok(Self {
            counts,
            kib: kib.collect::<Result<_>>()?,
        })
    }

    /// Fails if a figure has grown since `earlier` as it would if each of the `pods` made in between had left
    /// something behind. Less is allowed: the kernel frees some objects later, and counts them by pages.
    ///
    /// # Errors
    /// With the figures that have grown.
    pub fn has_not_grown_since(&self, earlier: &Self, pods: u64) -> Result<()> {
        let mut grown = Vec::new();
        for (name, now) in &self.counts {
            let before = earlier.counts.get(name).copied().unwrap_or_default();
            if now.saturating_sub(before) >= pods {
                grown.push(format!("{name}: {before}, {now} after {pods} more pods"));
            }
        }
        for (name, now) in &self.kib {
            let before = earlier.kib.get(name).copied().unwrap_or_default();
            if now.saturating_sub(before) >= pods * KIB_PER_POD {
                grown.push(format!("{name}: {before} KiB, {now} KiB after {pods} more pods"));
            }
        }
        ensure!(grown.is_empty(), "{}", grown.join(", "));
        Ok(())
    }
}

/// The number that follows `label` at the beginning of a line of `text`.
fn number_after(text: &str, label: &str) -> Result<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label));
    let word = rest.and_then(|rest| rest.split_whitespace().next());
    Ok(word.with_context(|| format!("no {label}"))?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(sockets: u64, shmem: u64) -> Census {
        Census {
            counts: BTreeMap::from([("sockets".to_owned(), sockets)]),
            kib: BTreeMap::from([("Shmem", shmem)]),
        }
    }

    #[test]
    fn one_object_or_half_a_mib_per_pod_is_growth() {
        let before = census(100, 1000);
        for (after, grows) in [
            (census(100, 1000), false),
            (census(119, 11_239), false),
            (census(90, 0), false),
            (census(120, 1000), true),
            (census(100, 11_240), true),
        ] {
            assert_eq!(
                after.has_not_grown_since(&before, 20).is_err(),
                grows,
                "{after:?}"
            );
        }
    }

    #[test]
    fn a_number_is_found_by_its_label() {
        let text = "nr_descendants 12\nnr_dying_descendants 3\nShmem:   77 kB\n";
        assert_eq!(number_after(text, "nr_descendants ").unwrap(), 12);
        assert_eq!(number_after(text, "Shmem:").unwrap(), 77);
        assert!(number_after(text, "descendants").is_err());
    }
}
