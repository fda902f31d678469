//! The task that keeps a guest's clock at the host's if the agent cannot do it alone. Costs nothing else.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::Sandbox;
use super::progress::until_ended;
use crate::guest::{CallError, Guest};
use crate::log;

/// Time between two corrections. A drift of 500 ppm, the most that NTP corrects, amounts to 15 ms.
const INTERVAL: Duration = Duration::from_secs(30);

impl Sandbox {
    /// Starts the task. It ends with the VM.
    pub(super) fn follow_clock(&self, guest: Guest) {
        let mut progress = self.progress.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = until_ended(&mut progress) => {}
                () = correct_clock(guest) => {}
            }
        });
    }
}

/// Corrects the clock from when the agent cannot read the host's. Returns if the agent refuses a call; a call
/// that takes too long is only skipped, since a VM that stands still is not a failure of its clock.
async fn correct_clock(guest: Guest) {
    let lost = guest.clock_lost().await;
    if let Err(error) = lost {
        return log_refusal(&error);
    }
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error @ CallError::Answer(..)) = guest.correct_clock().await {
            return log_refusal(&error);
        }
    }
}

/// A lost stream is not logged: the VM has ended, or is about to, with a reason of its own.
fn log_refusal(error: &CallError) {
    if let CallError::Answer(code, message) = error {
        log::warn(format_args!(
            "the guest's clock is not corrected any more: {code:?}: {message}"
        ));
    }
}
