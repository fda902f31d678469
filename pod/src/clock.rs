//! Clocks, as the rest of the shim needs them. Never sleeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `CLOCK_MONOTONIC` now, nanoseconds; the VMM's steps use the same clock.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Time since the epoch.
pub fn realtime() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Nanoseconds since the epoch, as protocol messages carry them.
pub fn realtime_ns() -> i64 {
    i64::try_from(realtime().as_nanos()).unwrap_or(i64::MAX)
}
