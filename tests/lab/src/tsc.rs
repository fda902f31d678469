//! Measures the frequency of this machine's time stamp counter, which QEMU passes through to the emulated
//! CPU. The VM's kernel is given the result: measured against an emulated timer on a busy host it has come
//! out at a fifth, and then the clocks of the VM and of its guests run at the wrong speed.
#![allow(unsafe_code, reason = "RDTSC has no safe wrapper")]

use std::time::{Duration, Instant};

/// Duration of the measurement.
const SPAN: Duration = Duration::from_millis(50);
/// A clock reading counts only if it took fewer ticks than this, so that the thread was not preempted during
/// it.
const CLOSE: u64 = 20_000;

/// Ticks per millisecond (kHz), accurate to a few millionths.
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

/// The counter and the clock at the same time.
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
    // SAFETY: every x86-64 CPU has RDTSC, and it accesses no memory.
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
