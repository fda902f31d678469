//! clock_adjtime(2): slews or steps CLOCK_REALTIME. Called by [`super::Clock`]; decides nothing.
#![allow(unsafe_code, reason = "no library wraps adjtimex(2)")]

use std::io;

use super::correction::Correction;

/// Has the kernel carry out `correction`.
///
/// # Errors
/// EINVAL if a step leads before the epoch.
pub fn apply(correction: Correction) -> io::Result<()> {
    // SAFETY: timex consists of integers, for which all bits zero is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    match correction {
        Correction::Nothing => return Ok(()),
        // As adjtime(3): replaces what an earlier slew has not made up yet. It ends by itself, so that the
        // clock keeps its rate if no further measurement follows.
        Correction::Slew(by_ns) => {
            request.modes = libc::ADJ_OFFSET_SINGLESHOT;
            request.offset = by_ns / 1000;
        }
        Correction::Step(by_ns) => {
            request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
            request.time.tv_sec = by_ns.div_euclid(1_000_000_000);
            // With ADJ_NANO these are nanoseconds, never negative.
            request.time.tv_usec = by_ns.rem_euclid(1_000_000_000);
        }
    }
    // SAFETY: `request` is valid for reads and writes for the duration of the call.
    if unsafe { libc::adjtimex(&raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
