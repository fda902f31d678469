//! The host memory that a pod's shim and VMM have mapped, by /proc/PID/smaps_rollup
//! (Documentation/filesystems/proc.rst). `ps` and `inspect` show it.

use std::fs;

use nacre_protocol::state::{Pod, PodState};
use serde::Serialize;

/// The resident memory of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// Bytes that only this process has, and has written: those of a guest are among them.
    pub private_bytes: u64,
    /// Bytes of files and of memory that other processes may map, too: programs, libraries, and the template from which
    /// a guest continues.
    pub shared_bytes: u64,
}

impl ProcessMemory {
    /// The memory of process `pid`; None if it has exited or belongs to another user.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
    }

    fn parse(rollup: &str) -> Option<Self> {
        let bytes = |key| Some(keyed(rollup, key)?.saturating_mul(1024));
        let private_bytes = bytes("Private_Dirty:")?;
        Some(Self {
            private_bytes,
            shared_bytes: bytes("Rss:")?.saturating_sub(private_bytes),
        })
    }
}

/// The memory of a pod's processes; None for one that does not run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PodProcesses {
    /// The VMM, with its guest's memory.
    pub vmm: Option<ProcessMemory>,
    /// The shim.
    pub shim: Option<ProcessMemory>,
}

impl PodProcesses {
    /// The memory of `pod`'s processes.
    pub fn of(pod: &Pod) -> Self {
        if !pod.is_shim_running() {
            return Self {
                vmm: None,
                shim: None,
            };
        }
        // Another process may have the pid of a VMM that has ended.
        let vmm = pod.vmm_pid.filter(|_| pod.state != PodState::Stopped);
        Self {
            vmm: vmm.and_then(ProcessMemory::of),
            shim: ProcessMemory::of(pod.shim_pid),
        }
    }

    /// That of both together; None if neither runs.
    pub fn together(&self) -> Option<ProcessMemory> {
        let processes = [self.vmm, self.shim].into_iter().flatten();
        processes.reduce(|one, other| ProcessMemory {
            private_bytes: one.private_bytes.saturating_add(other.private_bytes),
            shared_bytes: one.shared_bytes.saturating_add(other.shared_bytes),
        })
    }
}

/// The number after `key` in lines of words, as in the files of /proc and of a cgroup.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    let mut line = lines.find_map(|mut words| (words.next() == Some(key)).then_some(words))?;
    line.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_not_written_alone_is_shared() {
        let rollup = "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:   9 kB\nPss:      7 kB\nPss_Dirty: 1 kB\n\
            Shared_Clean: 4 kB\nPrivate_Clean: 2 kB\nPrivate_Dirty: 3 kB\n";
        let memory = ProcessMemory::parse(rollup).unwrap();
        assert_eq!((memory.private_bytes, memory.shared_bytes), (3 << 10, 6 << 10));
        assert_eq!(keyed(rollup, "Pss:"), Some(7));
        assert_eq!(ProcessMemory::parse("Rss: 9 kB\n"), None);
    }

    #[test]
    fn a_process_that_does_not_exist_has_no_memory() {
        let this = ProcessMemory::of(std::process::id()).unwrap();
        assert!(this.private_bytes > 0 && this.shared_bytes > 0, "{this:?}");
        assert_eq!(ProcessMemory::of(u32::MAX), None);
        let none = PodProcesses {
            vmm: None,
            shim: None,
        };
        assert_eq!(none.together(), None);
        let both = PodProcesses {
            vmm: Some(this),
            shim: Some(this),
        };
        assert_eq!(both.together().unwrap().private_bytes, 2 * this.private_bytes);
    }
}
