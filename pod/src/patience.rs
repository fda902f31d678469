//! How long to wait for a guest. On a host with more to run than CPUs, a guest whose VMM or shim waits for a CPU has had
//! no chance to answer: a deadline that has passed is prolonged while that is so. Called by the engine for the boot and
//! for the agent's answers.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

/// How long the threads are looked at when a deadline has passed.
const SAMPLE: Duration = Duration::from_secs(1);
/// Threads that together wait for a CPU for at least this part of a sample are kept from running: VMM and shim wait in
/// turn while one sends the other a message.
const KEPT: Duration = Duration::from_millis(500);
/// A deadline is prolonged to so many times its length at most: a guest whose limit of CPU time is small and that is
/// busy for ever waits for a CPU, too.
const MOST: u32 = 20;

/// A VMM whose threads are looked at.
#[derive(Debug, Clone)]
pub struct Vmm {
    tasks: PathBuf,
}

impl Vmm {
    /// The process `pid`.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self {
            tasks: format!("/proc/{pid}/task").into(),
        }
    }

    /// Its threads, none if it has ended, and the one that calls this.
    fn threads(&self) -> Threads {
        let tasks = fs::read_dir(&self.tasks).into_iter().flatten().flatten();
        let mut threads: HashMap<_, _> = tasks
            .filter_map(|task| Some((task.file_name(), Thread::read(&task.path())?)))
            .collect();
        if let Some(own) = Thread::read(Path::new("/proc/thread-self")) {
            // It runs, and what it has waited is complete.
            let is_runnable = false;
            threads.insert("self".into(), Thread { is_runnable, ..own });
        }
        Threads(threads)
    }
}

/// What the scheduler has given a thread since it exists.
#[derive(Debug, Clone, Copy, Default)]
struct Thread {
    /// Whether it runs, or waits for a CPU.
    is_runnable: bool,
    ran: Duration,
    /// Runnable but without a CPU. The kernel adds such a time when it is over.
    waited: Duration,
}

impl Thread {
    /// Reads `/proc/<pid>/task/<tid>/schedstat` (Documentation/scheduler/sched-stats.rst) and `stat` (proc(5)).
    fn read(task: &Path) -> Option<Self> {
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        let mut times = times
            .split_whitespace()
            .map_while(|time| time.parse().ok().map(Duration::from_nanos));
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        Some(Self {
            is_runnable: stat.rsplit_once(')')?.1.starts_with(" R"),
            ran: times.next()?,
            waited: times.next()?,
        })
    }

    /// How long it has waited for a CPU since `earlier`, one [`SAMPLE`] ago. With a hundred VMMs to a CPU, one waits
    /// through a whole sample, and nothing is added to any of its times.
    fn waited_since(&self, earlier: &Self) -> Duration {
        let ran = self.ran.saturating_sub(earlier.ran);
        let waited = self.waited.saturating_sub(earlier.waited);
        let waits_on = earlier.is_runnable && self.is_runnable && waited.is_zero();
        if waits_on {
            SAMPLE.saturating_sub(ran)
        } else {
            waited
        }
    }
}

/// Threads, by the names of their directories.
#[derive(Debug, Default)]
struct Threads(HashMap<OsString, Thread>);

impl Threads {
    /// Whether those that were there in `earlier` have been kept from running since.
    fn were_kept_since(&self, earlier: &Self) -> bool {
        let both = (self.0.iter()).filter_map(|(id, thread)| Some((thread, earlier.0.get(id)?)));
        let waited: Duration = both.map(|(thread, earlier)| thread.waited_since(earlier)).sum();
        waited >= KEPT
    }
}

/// The deadline has passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for `answer` until `deadline` has passed, and longer while the threads of the VMM and of this process wait for a
/// CPU. Costs nothing before the deadline.
///
/// # Errors
/// [`Elapsed`].
pub async fn within<T>(deadline: Duration, vmm: &Vmm, answer: impl Future<Output = T>) -> Result<T, Elapsed> {
    within_of(deadline, || vmm.threads(), answer).await
}

async fn within_of<T>(
    deadline: Duration,
    threads: impl Fn() -> Threads,
    answer: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    tokio::pin!(answer);
    if let Ok(answer) = timeout(deadline, &mut answer).await {
        return Ok(answer);
    }
    let mut left = deadline.saturating_mul(MOST - 1);
    let mut before = threads();
    while !left.is_zero() {
        if let Ok(answer) = timeout(SAMPLE, &mut answer).await {
            return Ok(answer);
        }
        let after = threads();
        if !after.were_kept_since(&before) {
            return Err(Elapsed);
        }
        before = after;
        left = left.saturating_sub(SAMPLE);
    }
    Err(Elapsed)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ffi::OsStr;
    use std::future::pending;

    use tokio::time::{Instant, sleep};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// How many seconds an answer that never comes is waited for, if each of two threads is runnable, runs for `runs`
    /// and waits for `waits` milliseconds of each second.
    async fn seconds(is_runnable: bool, runs: u64, waits: u64) -> u64 {
        let begun = Instant::now();
        let threads = || {
            let part = |ms: u64| Duration::from_millis(ms * begun.elapsed().as_secs());
            let thread = Thread {
                is_runnable,
                ran: part(runs),
                waited: part(waits),
            };
            Threads(HashMap::from([("1".into(), thread), ("2".into(), thread)]))
        };
        let result = within_of(DEADLINE, threads, pending::<()>()).await;
        assert_eq!(result, Err(Elapsed));
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_prolonged_while_the_vmm_waits_for_a_cpu() {
        assert_eq!(seconds(false, 0, 0).await, 11, "idle");
        assert_eq!(seconds(true, 1000, 0).await, 11, "busy");
        assert_eq!(
            seconds(true, 990, 10).await,
            11,
            "busy, and seldom kept from running"
        );
        assert_eq!(seconds(false, 10, 200).await, 11, "woken at times");
        assert_eq!(seconds(false, 10, 300).await, 200, "kept from running in turn");
        assert_eq!(seconds(true, 0, 0).await, 200, "kept through whole samples");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_taken_while_the_vmm_waits_for_a_cpu() {
        let late = async {
            #[expect(clippy::disallowed_methods, reason = "the clock is paused")]
            sleep(DEADLINE * 3).await;
            "late"
        };
        let kept = Thread {
            is_runnable: true,
            ..Thread::default()
        };
        let threads = || Threads(HashMap::from([("1".into(), kept)]));
        assert_eq!(within_of(DEADLINE, threads, late).await, Ok("late"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_taken_without_a_look_at_the_vmm() {
        let looked = Cell::new(0);
        let threads = || {
            looked.set(looked.get() + 1);
            Threads::default()
        };
        assert_eq!(within_of(DEADLINE, threads, async { 7 }).await, Ok(7));
        assert_eq!(looked.get(), 0);
    }

    #[test]
    fn the_threads_of_a_process_are_read() {
        let all = Vmm::of(std::process::id()).threads();
        let runs = |thread: &Thread| thread.is_runnable && !thread.ran.is_zero();
        assert!(all.0.values().any(runs), "CONFIG_SCHED_INFO: {all:?}");
        let alone = Vmm::of(u32::MAX).threads();
        let own = alone.0.get("self".as_ref() as &OsStr).unwrap();
        assert!(alone.0.len() == 1 && !own.ran.is_zero() && !own.is_runnable);
    }
}
