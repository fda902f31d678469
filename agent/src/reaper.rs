//! The one place that waits for processes: every child of pid 1, its own or inherited, ends here. What was asked for
//! with [`Reaper::watch`] becomes an event; the rest is forgotten. Never waits for a particular process.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..255; 128 + signal where a signal ended it.
    pub status: u32,
    /// The guest's wall clock, nanoseconds since the epoch.
    pub at_ns: i64,
}

type Event = Box<dyn FnOnce(Exit) + Send>;

/// The table of processes whose end somebody waits for.
#[derive(Default)]
pub struct Reaper {
    watched: Mutex<HashMap<Pid, Event>>,
}

impl Reaper {
    /// Has `event` called when `pid` ends. The process must be unable to have been reaped: its parent is still
    /// another one, which waits for the caller.
    pub fn watch(&self, pid: Pid, event: impl FnOnce(Exit) + Send + 'static) {
        self.table().insert(pid, Box::new(event));
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Pid, Event>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps for ever. The handler is in place when this returns its future's owner.
    pub fn start(self: Arc<Self>) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        tokio::spawn(async move {
            loop {
                self.collect();
                ended.recv().await;
            }
        });
        Ok(())
    }

    fn collect(&self) {
        // ECHILD: there are none; that, as "none has ended", is the end of the round.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(status) = exit_status(status.exit_status(), status.terminating_signal()) else {
                continue;
            };
            let event = self.table().remove(&pid);
            if let Some(event) = event {
                event(Exit {
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

fn realtime_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_signals() {
        assert_eq!(exit_status(Some(0), None), Some(0));
        assert_eq!(exit_status(Some(7), None), Some(7));
        assert_eq!(exit_status(None, Some(9)), Some(137));
        assert_eq!(exit_status(None, Some(40)), Some(168), "a real-time signal");
        assert_eq!(exit_status(None, None), None, "stopped, not ended");
    }
}
