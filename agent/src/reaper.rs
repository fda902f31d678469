//! Reaps every child of PID 1, its own and the orphans it inherits, and calls the callbacks that were
//! registered with [`Reaper::watch`]. Nothing else in the agent waits for a process; the reaper never waits
//! for a particular pid.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, 0..=255, or 128 + the number of the signal that ended the process.
    pub status: u32,
    /// The guest's wall clock when the process was reaped, nanoseconds since the epoch.
    pub at_ns: i64,
}

type OnExit = Box<dyn FnOnce(Exit) + Send>;

/// The callbacks, by pid.
#[derive(Default)]
pub struct Reaper {
    watched: Mutex<HashMap<Pid, OnExit>>,
}

impl Reaper {
    /// Registers `on_exit` to be called once when `pid` exits. The caller must ensure that `pid` cannot have
    /// been reaped yet: either it is still the child of another process that waits for the caller, or the
    /// event loop has not run since the fork.
    pub fn watch(&self, pid: Pid, on_exit: impl FnOnce(Exit) + Send + 'static) {
        self.callbacks().insert(pid, Box::new(on_exit));
    }

    fn callbacks(&self) -> std::sync::MutexGuard<'_, HashMap<Pid, OnExit>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs the SIGCHLD handler and starts the task that reaps. The handler is installed when this
    /// returns.
    pub fn start(self: Arc<Self>) -> io::Result<()> {
        let mut child_signals = signal(SignalKind::child())?;
        tokio::spawn(async move {
            loop {
                self.reap();
                child_signals.recv().await;
            }
        });
        Ok(())
    }

    fn reap(&self) {
        // ECHILD (no children) ends the round, as "no child has exited" does.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(status) = exit_status(status.exit_status(), status.terminating_signal()) else {
                continue;
            };
            let on_exit = self.callbacks().remove(&pid);
            if let Some(on_exit) = on_exit {
                on_exit(Exit {
                    status,
                    at_ns: realtime_ns(),
                });
            }
        }
    }
}

fn exit_status(exited: Option<i32>, signal: Option<i32>) -> Option<u32> {
    u32::try_from(exited.or_else(|| signal.map(|signal| signal.saturating_add(128)))?).ok()
}

/// The wall clock, nanoseconds since the epoch.
pub fn realtime_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_is_the_exit_code_or_128_plus_the_signal() {
        assert_eq!(exit_status(Some(0), None), Some(0));
        assert_eq!(exit_status(Some(7), None), Some(7));
        assert_eq!(exit_status(None, Some(9)), Some(137));
        assert_eq!(exit_status(None, Some(40)), Some(168), "a real-time signal");
        assert_eq!(exit_status(None, None), None, "stopped, not ended");
    }
}
