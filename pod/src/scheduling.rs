//! Whether the host lets a VMM's threads run: a guest that does not answer because its VMM is stopped, frozen or
//! starved of CPU time is not one that hangs. Reads /proc and the pod's cgroup. Called for a guest that is silent, and
//! at no other time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most threads that are read.
const MAX_THREADS: usize = 1024;

/// Which threads of a VMM count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Threads {
    /// Those of vCPUs, without which the guest can't answer.
    #[default]
    Vcpus,
    /// All, as there may be no vCPUs yet. One in an uninterruptible sleep is held back, too: VMMs that start together
    /// wait for the kernel's locks of mounts and of network namespaces, whose holders wait for a CPU.
    WhileBooting,
}

/// A thread at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Thread {
    /// The third field of /proc/PID/task/TID/stat (proc(5)): R, S, D, T, t and others.
    state: char,
    /// Nanoseconds on a CPU.
    on_cpu_ns: u64,
    /// Nanoseconds of waiting for a CPU.
    waited_ns: u64,
}

/// The threads of a VMM at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scheduling {
    which: Threads,
    is_frozen: bool,
    threads: BTreeMap<String, Thread>,
}

/// Whose threads [`Scheduled::read`] reads.
#[derive(Debug, Clone, Default)]
pub struct Scheduled {
    /// The VMM's pid on the host.
    pub pid: u32,
    /// The pod's cgroup.
    pub cgroup: Option<PathBuf>,
    /// Those that count.
    pub which: Threads,
}

impl Scheduled {
    /// Reads the state of the threads. What can't be read counts as a thread that may run: the VMM has most
    /// likely exited, which is noticed elsewhere.
    #[must_use]
    pub fn read(&self) -> Scheduling {
        let directory = PathBuf::from(format!("/proc/{}/task", self.pid));
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let threads = entries.take(MAX_THREADS).filter_map(|entry| {
            let thread = thread(&entry.path(), self.which)?;
            Some((entry.file_name().to_string_lossy().into_owned(), thread))
        });
        Scheduling {
            which: self.which,
            is_frozen: self.cgroup.as_deref().is_some_and(is_frozen),
            threads: threads.collect(),
        }
    }

    /// Looks at the VMM now. What is returned tells, each time, [whether it was held back](Scheduling::was_held_back)
    /// since the look before, which was that long ago.
    pub fn watch(&self) -> impl FnMut(Duration) -> bool {
        let mut earlier = self.read();
        move |window| {
            let now = self.read();
            let was_held_back = now.was_held_back(&earlier, window);
            earlier = now;
            was_held_back
        }
    }
}

impl Scheduling {
    /// True if the host kept the threads from running in the time since `earlier`, which was `window` ago: together they
    /// waited for a CPU at least three times as long as they had one, and for a tenth of the window.
    #[must_use]
    pub fn was_held_back(&self, earlier: &Self, window: Duration) -> bool {
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let (mut ran, mut waited) = (0_u64, 0_u64);
        for (id, now) in &self.threads {
            let Some(before) = earlier.threads.get(id) else {
                continue;
            };
            let is_stopped = match self.which {
                Threads::Vcpus => matches!(now.state, 'T' | 't'),
                Threads::WhileBooting => matches!(now.state, 'T' | 't' | 'D'),
            };
            if is_stopped {
                return true;
            }
            let thread_ran = now.on_cpu_ns.saturating_sub(before.on_cpu_ns);
            // The kernel counts a wait when it ends. One that goes on: runnable, and not once run, or since before.
            let waits_still = now.state == 'R' && (thread_ran == 0 || before.state == 'R');
            ran = ran.saturating_add(thread_ran);
            waited = waited.saturating_add(if waits_still {
                window_ns.saturating_sub(thread_ran)
            } else {
                now.waited_ns.saturating_sub(before.waited_ns)
            });
        }
        self.is_frozen || earlier.is_frozen || waited >= ran.saturating_mul(3).max(window_ns / 10)
    }
}

/// The thread of /proc/PID/task/TID, if it counts.
fn thread(task: &Path, which: Threads) -> Option<Thread> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    if which == Threads::Vcpus && !name.starts_with("vcpu") {
        return None;
    }
    let state = rest.chars().next()?;
    // Three numbers (Documentation/scheduler/sched-stats.rst); without CONFIG_SCHED_INFO zeros.
    let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let mut numbers = schedstat.split_whitespace().map_while(|word| word.parse().ok());
    Some(Thread {
        state,
        on_cpu_ns: numbers.next().unwrap_or(0),
        waited_ns: numbers.next().unwrap_or(0),
    })
}

/// Whether the processes of a cgroup are frozen, by it or by one above it (cgroup-v2.rst, "cgroup.events").
fn is_frozen(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "frozen 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(8);

    const WHICH: Threads = Threads::Vcpus;

    fn one(is_frozen: bool, state: char, on_cpu_s: u64, waited_s: u64) -> Scheduling {
        let thread = Thread {
            state,
            on_cpu_ns: on_cpu_s * 1_000_000_000,
            waited_ns: waited_s * 1_000_000_000,
        };
        Scheduling {
            which: WHICH,
            is_frozen,
            threads: [("7".to_owned(), thread)].into(),
        }
    }

    #[test]
    fn only_a_vcpu_that_may_run_counts_as_silent() {
        let earlier = one(false, 'R', 10, 3);
        for (now, held_back) in [
            // Halted, spinning, in a system call that hangs.
            (one(false, 'S', 10, 3), false),
            (one(false, 'R', 18, 3), false),
            (one(false, 'D', 10, 3), false),
            // Spinning, and preempted now and then.
            (one(false, 'R', 15, 6), false),
            (one(false, 'R', 14, 7), false),
            (one(false, 'R', 12, 9), true),
            (one(false, 'R', 11, 6), true),
            (one(false, 'R', 10, 3), true),
            (one(false, 'T', 10, 3), true),
            (one(false, 't', 10, 3), true),
            (one(true, 'S', 10, 3), true),
        ] {
            assert_eq!(now.was_held_back(&earlier, WINDOW), held_back, "{now:?}");
        }
        let was_asleep = one(false, 'S', 10, 3);
        assert!(one(false, 'R', 10, 3).was_held_back(&was_asleep, WINDOW));
        assert!(!one(false, 'R', 14, 6).was_held_back(&was_asleep, WINDOW));
        let mut in_the_kernel = one(false, 'D', 10, 3);
        in_the_kernel.which = Threads::WhileBooting;
        assert!(in_the_kernel.was_held_back(&earlier, WINDOW));
        let thawed_meanwhile = one(true, 'S', 10, 3);
        assert!(one(false, 'S', 10, 3).was_held_back(&thawed_meanwhile, WINDOW));
        let new = Scheduling::default();
        assert!(!earlier.was_held_back(&new, WINDOW) && !new.was_held_back(&earlier, WINDOW));
    }

    #[test]
    fn a_stopped_thread_is_found_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let task = directory.path();
        let stat = |name: &str| format!("7 ({name}) T 1 7 7 0 -1 4194304");
        std::fs::write(task.join("stat"), stat("vcpu0")).unwrap();
        std::fs::write(task.join("schedstat"), "500 20 3\n").unwrap();
        let thread = Thread {
            state: 'T',
            on_cpu_ns: 500,
            waited_ns: 20,
        };
        assert_eq!(super::thread(task, WHICH), Some(thread));
        std::fs::write(task.join("stat"), stat("a) S (vcpu")).unwrap();
        assert_eq!(super::thread(task, WHICH), None);
        assert!(super::thread(task, Threads::WhileBooting).is_some());
        std::fs::write(task.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(is_frozen(task));
        assert!(!is_frozen(Path::new("/no/such/cgroup")));
    }
}
