//! Measures and corrects the guest's clock by calls to the agent, for hosts whose KVM does not offer its
//! clock to the guest (docs/architecture.md, "The guest's clock"). Called by the sandbox's task for it.

use std::time::Duration;

use nacre_protocol::agent::{CorrectClockRequest, Empty};
use ttrpc::context::{Context, with_duration};

use super::{CallError, Guest};
use crate::clock;

/// The deadline of a call. Unlike that of other calls, its passing says nothing about the agent's health: it
/// is not pinged, and the next round measures again.
const CLOCK_DEADLINE: Duration = Duration::from_secs(10);
/// Longest round trip that is used for a measurement, nanoseconds; half of it is the measurement's error.
const MAX_ROUND_TRIP: u64 = 40_000_000;
/// Most attempts for one measurement: a busy host delays single calls.
const ATTEMPTS: usize = 3;

impl Guest {
    /// Waits, without a deadline, until the agent cannot read the host's clock by itself.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn clock_lost(&self) -> Result<(), CallError> {
        self.client
            .wait_clock_lost(Context::default(), &Empty::new())
            .await?;
        Ok(())
    }

    /// Measures the guest's clock and has the agent correct it. Does nothing if no call was quick enough.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn correct_clock(&self) -> Result<(), CallError> {
        for _ in 0..ATTEMPTS {
            let sent = clock::realtime_ns();
            let context = with_duration(CLOCK_DEADLINE);
            let read = self.client.read_clock(context, &Empty::new()).await?;
            let Some(request) = measurement(sent, read.realtime_ns, clock::realtime_ns()) else {
                continue;
            };
            let context = with_duration(CLOCK_DEADLINE);
            self.client.correct_clock(context, &request).await?;
            return Ok(());
        }
        Ok(())
    }
}

/// The difference of the clocks, from the guest's time between two times of the host, all in nanoseconds.
/// None if the call took too long, or the host's clock was set back meanwhile.
fn measurement(sent: i64, guest: i64, received: i64) -> Option<CorrectClockRequest> {
    let round_trip = u64::try_from(received.checked_sub(sent)?).ok()?;
    let uncertainty = round_trip.div_ceil(2);
    (round_trip <= MAX_ROUND_TRIP).then(|| CorrectClockRequest {
        offset_ns: sent.saturating_add_unsigned(uncertainty).saturating_sub(guest),
        uncertainty_ns: uncertainty,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_that_to_the_middle_of_the_call() {
        const MS: i64 = 1_000_000;
        for ((sent, guest, received), expected) in [
            ((100, 100, 100), Some((0, 0))),
            ((100, 40, 121), Some((71, 11))),
            ((100, 400, 120), Some((-290, 10))),
            ((0, 0, 40 * MS), Some((20 * MS, 20_000_000))),
            ((0, 0, 40 * MS + 1), None),
            ((100, 100, 99), None),
            // What a hostile guest answers.
            ((100, i64::MIN, 120), Some((i64::MAX, 10))),
            ((100, i64::MAX, 120), Some((110 - i64::MAX, 10))),
            ((i64::MIN, 0, i64::MAX), None),
        ] {
            let measured = measurement(sent, guest, received);
            let measured = measured.map(|request| (request.offset_ns, request.uncertainty_ns));
            assert_eq!(measured, expected, "{sent} {guest} {received}");
        }
    }
}
