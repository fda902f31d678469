//! Reads the host's wall clock: KVM's PTP device, whose reads are hypercalls. KVM answers them only if the
//! host's own clock source is the TSC; if it was not at boot, the guest has no device. Called by
//! [`super::Clock`]; never changes a clock.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};

use super::Measurement;

/// The only PTP clock that the guest's kernel has a driver for.
const DEVICE: &str = "/dev/ptp0";
/// A measurement that is at most this uncertain is not repeated, nanoseconds.
const GOOD: u64 = 100_000;
/// Most attempts for one measurement: the vCPU may be preempted in each.
const ATTEMPTS: usize = 5;

/// The device, open.
#[derive(Debug)]
pub struct HostClock(File);

impl HostClock {
    /// Opens the device.
    ///
    /// # Errors
    /// NotFound if KVM offers no clock.
    pub fn open() -> io::Result<Self> {
        File::open(DEVICE).map(Self)
    }

    /// The least uncertain of up to [`ATTEMPTS`] measurements.
    ///
    /// # Errors
    /// EOPNOTSUPP if KVM does not offer the clock any more.
    pub fn measure(&self) -> io::Result<Measurement> {
        let mut best = self.measure_once()?;
        for _ in 1..ATTEMPTS {
            if best.uncertainty_ns <= GOOD {
                break;
            }
            let next = self.measure_once()?;
            if next.uncertainty_ns < best.uncertainty_ns {
                best = next;
            }
        }
        Ok(best)
    }

    fn measure_once(&self) -> io::Result<Measurement> {
        let before = clock_gettime(ClockId::Realtime);
        let host = clock_gettime_dynamic(DynamicClockId::Dynamic(self.0.as_fd()))?;
        let after = clock_gettime(ClockId::Realtime);
        Ok(measurement(
            nanoseconds(before),
            nanoseconds(host),
            nanoseconds(after),
        ))
    }
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// The measurement from the host's time between two times of the guest. A guest's clock that is set back
/// between them gives no information.
fn measurement(before: i64, host: i64, after: i64) -> Measurement {
    let Ok(window) = u64::try_from(after.saturating_sub(before)) else {
        return Measurement {
            offset_ns: 0,
            uncertainty_ns: u64::MAX,
        };
    };
    let uncertainty = window.div_ceil(2);
    let middle = before.saturating_add_unsigned(uncertainty);
    Measurement {
        offset_ns: host.saturating_sub(middle),
        uncertainty_ns: uncertainty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_that_to_the_middle_of_the_read() {
        for (times, offset_ns, uncertainty_ns) in [
            ((1000, 1001, 1002), 0, 1),
            ((1000, 5000, 1010), 3995, 5),
            ((5000, 1000, 5011), -4006, 6),
            ((7, 7, 7), 0, 0),
            ((7, 9, 5), 0, u64::MAX),
            ((i64::MIN, i64::MAX, i64::MAX), i64::MAX, 1 << 62),
        ] {
            let (before, host, after) = times;
            let measured = measurement(before, host, after);
            assert_eq!(
                (measured.offset_ns, measured.uncertainty_ns),
                (offset_ns, uncertainty_ns),
                "{times:?}"
            );
        }
    }
}
