//! How long to wait for a guest. On a host with more to run than CPUs, a guest whose VMM waits for a CPU has had no
//! chance to answer: a deadline that has passed is prolonged while the host holds the VMM or this process back. Called
//! by the engine for the boot and for the agent's answers.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::scheduling::Scheduled;

/// How long the VMM is looked at, each time, when a deadline has passed.
const SAMPLE: Duration = Duration::from_secs(1);
/// Samples in a row in which it was not held back: then the deadline has passed. VMMs that start together also sleep until
/// others have freed a lock of the kernel.
const FREE: u32 = 3;
/// A timer that fires later than this was held back: this process did not run.
const MAX_LATE: Duration = Duration::from_millis(250);
/// A deadline is prolonged to so many times its length at most: a guest whose limit of CPU time is small and that is
/// busy for ever waits for a CPU, too.
const MOST: u32 = 20;

/// The deadline has passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for `answer` until `deadline` has passed, and longer while the host holds `vmm` back. Costs nothing before the
/// deadline.
///
/// # Errors
/// [`Elapsed`].
pub async fn within<T>(
    deadline: Duration,
    vmm: &Scheduled,
    answer: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    within_of(deadline, || vmm.watch(), answer).await
}

/// Calls `watch` when the deadline has passed, and what that returns after each sample, with its length.
async fn within_of<T, W: FnMut(Duration) -> bool>(
    deadline: Duration,
    watch: impl FnOnce() -> W,
    answer: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    tokio::pin!(answer);
    if let Ok(answer) = timeout(deadline, &mut answer).await {
        return Ok(answer);
    }
    let mut was_held_back = watch();
    let mut left = deadline.saturating_mul(MOST - 1);
    let mut free = 0;
    while !left.is_zero() {
        let begun = Instant::now();
        if let Ok(answer) = timeout(SAMPLE, &mut answer).await {
            return Ok(answer);
        }
        let is_late = begun.elapsed() > SAMPLE + MAX_LATE;
        free = if was_held_back(SAMPLE) || is_late {
            0
        } else {
            free + 1
        };
        if free == FREE {
            return Err(Elapsed);
        }
        left = left.saturating_sub(SAMPLE);
    }
    Err(Elapsed)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// How many seconds an answer that never comes is waited for, if the VMM is held back in the first `samples`.
    async fn seconds(mut samples: u32) -> u64 {
        let begun = Instant::now();
        let watch = || {
            move |_| {
                samples = samples.saturating_sub(1);
                samples > 0
            }
        };
        assert_eq!(within_of(DEADLINE, watch, pending::<()>()).await, Err(Elapsed));
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_prolonged_while_the_vmm_is_held_back() {
        assert_eq!(seconds(0).await, 13);
        assert_eq!(seconds(5).await, 17);
        assert_eq!(seconds(u32::MAX).await, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_taken_while_the_vmm_is_held_back() {
        let late = async {
            #[expect(clippy::disallowed_methods, reason = "the clock is paused")]
            sleep(DEADLINE * 3).await;
            "late"
        };
        assert_eq!(within_of(DEADLINE, || |_| true, late).await, Ok("late"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_taken_without_a_look_at_the_vmm() {
        let watch = || -> fn(Duration) -> bool { panic!("the VMM is looked at") };
        assert_eq!(within_of(DEADLINE, watch, async { 7 }).await, Ok(7));
    }
}
