//! Reads the host's clocks. Never sleeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of a pod's timeline in shim and VMM.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// `CLOCK_REALTIME` since the epoch; zero if the host's clock is before it.
pub fn realtime() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `CLOCK_REALTIME` in nanoseconds since the epoch, as protocol messages have it.
pub fn realtime_ns() -> i64 {
    i64::try_from(realtime().as_nanos()).unwrap_or(i64::MAX)
}
