//! Notices a guest that stands still: its vCPUs hang, its kernel does, or its agent. Every 10 s the agent is pinged,
//! by one call that it refuses at once. An agent that is silent for two windows of 8 s is reported, in the log and in
//! pod.json, for `nacre ps` and `nacre inspect`. Nothing is ended for that: whoever sends SIGKILL to a container ends
//! its VM (`kill`), and so does a call that times out (`vm_life`).
//!
//! ```text
//! 10 s ─▶ ping ─answer─▶ again
//!           └─ 8 s ─▶ window ─answer─▶ again
//!                       ├─ 8 s, and the VM could run ─▶ reported ─answer─▶ reported again
//!                       └─ 8 s, and it could not ─▶ window
//! ```
//! Time in which the guest cannot answer does not count: the windows are the monotonic clock's, which stands still
//! while the host is suspended, and a window in which the VMM was stopped, frozen or starved, or this process was,
//! is followed by another one.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::progress::until_ended;
use super::queue::{Event, Queue};
use super::{Sandbox, failed};
use crate::guest::Guest;
use crate::scheduling::Threads;
use crate::{clock, log};

/// How often, and for how long.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two pings.
    interval: Duration,
    /// How long an answer may take before the guest is looked at, and the length of a window after that.
    window: Duration,
}

const PACE: Pace = Pace {
    interval: Duration::from_secs(10),
    window: Duration::from_secs(8),
};
/// A timer that fires later than this was held back: this process did not run.
const MAX_LATE: Duration = Duration::from_secs(1);
const HINT: &str = "SIGKILL to a container's init ends the VM within 15 s (`ctr task kill --signal SIGKILL`, or delete \
                    the pod); the console shows whether the guest's kernel hangs";

impl Sandbox {
    /// Pings the agent for as long as the VM lives.
    pub(super) fn watch_heartbeat(&self, guest: Guest) {
        if self.vm.is_none() {
            return;
        }
        let vmm = self.scheduled(Threads::Vcpus);
        let (mut progress, queue) = (self.progress.subscribe(), self.queue.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = until_ended(&mut progress) => {}
                () = beat(PACE, || guest.ping(), vmm.watch(), &queue) => {}
            }
        });
    }

    /// The agent has not answered for a while, or does again.
    pub(super) fn heartbeat_changed(&mut self, is_silent: bool) {
        let Some(vm) = &self.vm else { return };
        let seconds = PACE.window.saturating_mul(2).as_secs();
        if is_silent {
            let reason =
                format!("the guest's agent has not answered for {seconds} s: the guest stands still");
            let mut silent = failed("running", reason, Some(HINT.to_owned()));
            silent.console = vm.console_tail();
            log::error(&silent);
        } else {
            log::warn("the guest's agent answers again");
        }
        let since = clock::realtime().as_secs().saturating_sub(seconds);
        self.pod.silent_since = is_silent.then_some(since);
        self.write_pod();
    }
}

/// Pings for ever; returns if a ping fails, which means that the agent's stream is lost. `was_held_back` tells
/// whether the VM was kept from running since it was last asked, the given time ago.
async fn beat<P: Future<Output = bool>>(
    pace: Pace,
    ping: impl Fn() -> P,
    mut was_held_back: impl FnMut(Duration) -> bool,
    queue: &Queue,
) {
    loop {
        wait(pace.interval).await;
        let mut answer = pin!(ping());
        let mut answered = timeout(pace.window, &mut answer).await.ok();
        if answered.is_none() {
            // From now on.
            was_held_back(pace.window);
        }
        while answered.is_none() {
            let begun = Instant::now();
            answered = timeout(pace.window, &mut answer).await.ok();
            let late = begun.elapsed().saturating_sub(pace.window);
            if answered.is_some() || late > MAX_LATE || was_held_back(pace.window) {
                continue;
            }
            queue.send(Event::HeartbeatChanged(true)).await;
            answered = Some(answer.as_mut().await);
            queue.send(Event::HeartbeatChanged(false)).await;
        }
        if answered == Some(false) {
            return;
        }
    }
}

/// Waits for `time`; other tasks run meanwhile.
async fn wait(time: Duration) {
    let _elapsed = timeout(time, std::future::pending::<()>()).await;
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use super::*;

    /// Runs a heartbeat whose pings take these numbers of windows; the last one fails. `held` says of each window
    /// after the first of a ping whether the VM was held back in it. Returns what was reported.
    async fn reports(pings: &[f64], held: &[bool]) -> Vec<bool> {
        let (queue, mut received) = Queue::new();
        let left = RefCell::new(VecDeque::from(pings.to_vec()));
        let ping = || {
            let windows = left.borrow_mut().pop_front();
            async move {
                wait(PACE.window.mul_f64(windows.unwrap_or(0.0))).await;
                windows.is_some()
            }
        };
        let asked = Cell::new(0);
        let was_held_back = |_| {
            // The first question only begins a window.
            let index = asked.replace(asked.get() + 1);
            index > 0 && held.get(index - 1).copied().unwrap_or(false)
        };
        beat(PACE, ping, was_held_back, &queue).await;
        drop(queue);
        let mut reported = Vec::new();
        while let Some(event) = received.recv().await {
            let Event::HeartbeatChanged(is_silent) = event else {
                panic!("{event:?}")
            };
            reported.push(is_silent);
        }
        reported
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_answers_is_not_reported() {
        assert!(reports(&[0.0, 0.0, 0.0], &[]).await.is_empty());
        // Slow, but within the second window.
        assert!(reports(&[1.5, 0.0], &[]).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_guest_is_reported_once_and_so_is_its_answer() {
        assert_eq!(reports(&[0.0, 5.5, 0.0], &[]).await, [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_cannot_run_is_not_silent() {
        assert!(reports(&[4.5, 0.0], &[true, true, true, true]).await.is_empty());
        assert_eq!(reports(&[5.5, 0.0], &[true, false]).await, [true, false]);
    }
}
