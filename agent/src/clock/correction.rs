//! Decides how the guest's clock is corrected. Pure; called by [`super::Clock`].
//!
//! | the host is ahead by | while containers run | at Setup |
//! |---|---|---|
//! | 50 ms or more | step | step |
//! | less, or behind by less than 1 s | slew | step |
//! | nothing that the measurement can tell | nothing | nothing |
//! | -1 s or less | step back | step back |
//!
//! A step forward looks to a program as if it had not been scheduled meanwhile, as in a VM that stood still. A
//! step back breaks programs that compare times, so it is made only if slewing would take more than half an
//! hour.

/// The host's lead from which the clock is stepped, nanoseconds.
const FORWARD_STEP: i64 = 50_000_000;
/// The host's lag from which the clock is stepped, nanoseconds.
const BACKWARD_STEP: i64 = 1_000_000_000;

/// How far the guest's clock was from the host's at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// Host's time less guest's time, nanoseconds.
    pub offset_ns: i64,
    /// The true difference is at most this far from `offset_ns`, nanoseconds.
    pub uncertainty_ns: u64,
}

/// When a measurement was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// After Setup: no program depends on the clock yet.
    Setup,
    /// While containers may run.
    Running,
}

/// What the kernel is asked to do. The values are nanoseconds by which the clock must change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    Nothing,
    /// The clock runs faster or slower by 500 ppm until it has made up the difference.
    Slew(i64),
    /// The clock changes at once.
    Step(i64),
}

/// The correction after `measured`.
pub fn decide(measured: Measurement, occasion: Occasion) -> Correction {
    let offset = measured.offset_ns;
    if offset.unsigned_abs() <= measured.uncertainty_ns {
        return Correction::Nothing;
    }
    let is_large = offset >= FORWARD_STEP || offset <= -BACKWARD_STEP;
    if is_large || occasion == Occasion::Setup {
        Correction::Step(offset)
    } else {
        Correction::Slew(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn at(occasion: Occasion, offset_ns: i64, uncertainty_ns: u64) -> Correction {
        let measured = Measurement {
            offset_ns,
            uncertainty_ns,
        };
        decide(measured, occasion)
    }

    #[test]
    fn small_differences_are_slewed_and_large_ones_stepped() {
        use Correction::{Nothing, Slew, Step};
        for (offset, uncertainty, expected) in [
            (0, 0, Nothing),
            (1, 0, Slew(1)),
            (900, 1000, Nothing),
            (-1000, 1000, Nothing),
            (-1001, 1000, Slew(-1001)),
            (49 * MS, 1000, Slew(49 * MS)),
            (50 * MS, 1000, Step(50 * MS)),
            (-50 * MS, 1000, Slew(-50 * MS)),
            (-999 * MS, 1000, Slew(-999 * MS)),
            (-1000 * MS, 1000, Step(-1000 * MS)),
            (3_600_000 * MS, 1000, Step(3_600_000 * MS)),
            (60 * MS, 100 * 1_000_000, Nothing),
            (i64::MAX, 0, Step(i64::MAX)),
            (i64::MIN, 0, Step(i64::MIN)),
            (i64::MIN, u64::MAX, Nothing),
        ] {
            assert_eq!(at(Occasion::Running, offset, uncertainty), expected, "{offset}");
        }
    }

    #[test]
    fn the_first_correction_is_exact_in_both_directions() {
        for offset in [-MS, MS] {
            assert_eq!(at(Occasion::Setup, offset, 1000), Correction::Step(offset));
        }
        assert_eq!(at(Occasion::Setup, 900, 1000), Correction::Nothing);
    }

    #[test]
    fn an_hour_of_the_worst_drift_stays_below_50_ms() {
        // As the kernel does: a slew of at most 500 ppm, until the difference that was asked for is made up.
        for drift_ppm in [-500, -50, 20, 500] {
            let (mut offset, mut pending) = (0, 0);
            for second in 0..3600 {
                let slewed = i64::clamp(pending, -500_000, 500_000);
                pending -= slewed;
                offset += drift_ppm * 1000 - slewed;
                if second % 10 == 9 {
                    match at(Occasion::Running, offset, 1000) {
                        Correction::Nothing => {}
                        Correction::Slew(by) => pending = by,
                        Correction::Step(by) => (offset, pending) = (offset - by, 0),
                    }
                }
                assert!(
                    offset.abs() < 50 * MS,
                    "{drift_ppm} ppm: {offset} ns after {second} s"
                );
            }
        }
    }
}
