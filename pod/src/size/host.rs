//! What this host has to give: its memory, and the CPUs that the engine may use. Two system calls.

/// A host's CPUs and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs that a VM may run on, 255 at most.
    pub cpus: u8,
    /// CPUs that are online, 255 at most.
    pub all_cpus: u8,
    /// Memory, MiB.
    pub memory_mib: u32,
}

impl Host {
    /// This host. If `cpus` is not empty, a VM may run on those only.
    #[must_use]
    pub fn read(cpus: &[usize]) -> Self {
        let count = if cpus.is_empty() {
            usable_cpus()
        } else {
            cpus.len()
        };
        let info = rustix::system::sysinfo();
        let bytes = info.totalram.saturating_mul(info.mem_unit.into());
        Self {
            cpus: u8::try_from(count).unwrap_or(u8::MAX).max(1),
            all_cpus: online_cpus(),
            memory_mib: u32::try_from(bytes >> 20).unwrap_or(u32::MAX),
        }
    }
}

/// Unlike those that a process may run on, they are the same for all pods.
fn online_cpus() -> u8 {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    let count = count.ok().flatten().unwrap_or(1);
    u8::try_from(count).unwrap_or(u8::MAX).max(1)
}

/// The CPUs that this process may run on, which the VMM inherits.
fn usable_cpus() -> usize {
    let this = nix::unistd::Pid::from_raw(0);
    let Ok(set) = nix::sched::sched_getaffinity(this) else {
        return 1;
    };
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_cpus_and_memory() {
        let host = Host::read(&[]);
        assert!(host.cpus >= 1 && host.memory_mib > 64, "{host:?}");
        assert_eq!(Host::read(&[3, 5]).cpus, 2);
    }
}
