//! The frequency of this machine's time stamp counter, which is the emulated CPU's too. A kernel in the VM that
//! measures it against an emulated timer, on a busy host, can come to a fifth of it; its clock and those of its
//! guests then run wild.
#![allow(unsafe_code, reason = "the instruction that reads the counter")]

use std::time::{Duration, Instant};

/// How long it is measured.
const SPAN: Duration = Duration::from_millis(50);
/// Ticks between which the clock must have been read, so that no preemption came between the two.
const CLOSE: u64 = 20_000;

/// Ticks per millisecond, within a few millionths.
pub fn khz() -> u64 {
    let (first, started) = reading();
    while started.elapsed() < SPAN {
        std::hint::spin_loop();
    }
    let (last, ended) = reading();
    let nanoseconds = ended.duration_since(started).as_nanos();
    let ticks = u128::from(last.wrapping_sub(first));
    u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// Counter and clock at the same time.
fn reading() -> (u64, Instant) {
    loop {
        let before = ticks();
        let now = Instant::now();
        let after = ticks();
        if after.wrapping_sub(before) < CLOSE {
            return (before, now);
        }
    }
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction; it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (first, second) = (khz(), khz());
        assert!(first.abs_diff(second) < first / 1000, "{first} and {second} kHz");
    }
}
