//! The driver's way through initialization (virtio 1.2, 3.1.1), as one pure function.
//!
//! ```text
//! 0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK       FAILED from anywhere, 0 from anywhere: reset
//! ```

pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;

/// The four stages, each with all bits of those before.
const STAGES: [u8; 4] = [
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
];

/// What follows from a write to the status register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Back to the beginning.
    Reset,
    /// The status is now this.
    Set(u8),
    /// The status is now this, and the device starts.
    Activate(u8),
    /// Nothing: no driver may do this.
    Refuse,
}

/// The step from `current` when the driver writes `written`; `features_fit` tells whether what it accepted was
/// offered. If not, FEATURES_OK stays clear, which the driver then reads.
pub(super) fn step(current: u8, written: u32, features_fit: bool) -> Step {
    if written == 0 {
        return Step::Reset;
    }
    let Ok(written) = u8::try_from(written) else {
        return Step::Refuse;
    };
    let stage = written & !(NEEDS_RESET | FAILED);
    let backwards = current & !written & !NEEDS_RESET != 0;
    if backwards || (stage != 0 && !STAGES.contains(&stage)) {
        return Step::Refuse;
    }
    let status = written & !NEEDS_RESET;
    if status & FAILED != 0 {
        return Step::Set(status & !DRIVER_OK | current & DRIVER_OK);
    }
    let new = status & !current;
    if new & FEATURES_OK != 0 && !features_fit {
        return Step::Set(status & !(FEATURES_OK | DRIVER_OK));
    }
    if new & DRIVER_OK != 0 {
        Step::Activate(status)
    } else {
        Step::Set(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_the_specification() {
        assert_eq!(step(0, 1, false), Step::Set(1));
        assert_eq!(step(1, 3, false), Step::Set(3));
        assert_eq!(step(3, 11, true), Step::Set(11));
        assert_eq!(step(11, 15, true), Step::Activate(15));
        assert_eq!(step(15, 15, true), Step::Set(15), "the device starts once");
        assert_eq!(step(15, 0, true), Step::Reset);
    }

    #[test]
    fn features_that_were_not_offered_leave_features_ok_clear() {
        assert_eq!(step(3, 11, false), Step::Set(3));
        assert_eq!(step(3, 15, false), Step::Set(3));
    }

    #[test]
    fn steps_left_out_or_taken_back_are_refused() {
        for (current, written) in [
            (0, 2),
            (0, 4),
            (0, 8),
            (1, 5),
            (3, 7),
            (3, 1),
            (15, 11),
            (0, 16),
            (0, 256),
            (0, u32::MAX),
        ] {
            assert_eq!(
                step(current, written, true),
                Step::Refuse,
                "{current} -> {written}"
            );
        }
    }

    #[test]
    fn a_driver_may_give_up_and_needs_reset_is_not_the_drivers_to_set() {
        assert_eq!(step(3, 0x83, true), Step::Set(0x83));
        assert_eq!(step(0, 0x80, true), Step::Set(0x80));
        assert_eq!(step(15, 0x4f, true), Step::Set(15));
    }
}
