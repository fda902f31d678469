//! The driver's initialization sequence (virtio 1.2, 3.1.1) as one pure transition function. Called by the
//! transport at each write to the status register.
//!
//! ```text
//! 0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK       FAILED from any state; 0 from any state: reset
//! ```

pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;

/// The valid values without FAILED and NEEDS_RESET: each adds a bit to the one before.
const STAGES: [u8; 4] = [
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
];

/// The effect of a write to the status register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    /// Reset the device.
    Reset,
    /// Set this status.
    Set(u8),
    /// Set this status and activate the device.
    Activate(u8),
    /// Keep the current status: the write is invalid.
    Refuse,
}

/// The transition from `current` when the driver writes `written`. If `features_valid` is false, since the
/// driver has accepted features that were not offered, FEATURES_OK stays clear; the driver checks that by
/// reading it back.
pub(super) fn transition(current: u8, written: u8, features_valid: bool) -> Transition {
    if written == 0 {
        return Transition::Reset;
    }
    let stage = written & !(NEEDS_RESET | FAILED);
    let clears_bits = current & !written & !NEEDS_RESET != 0;
    if clears_bits || (stage != 0 && !STAGES.contains(&stage)) {
        return Transition::Refuse;
    }
    let status = written & !NEEDS_RESET;
    if status & FAILED != 0 {
        return Transition::Set(status & !DRIVER_OK | current & DRIVER_OK);
    }
    let added = status & !current;
    if added & FEATURES_OK != 0 && !features_valid {
        return Transition::Set(status & !(FEATURES_OK | DRIVER_OK));
    }
    if added & DRIVER_OK != 0 {
        Transition::Activate(status)
    } else {
        Transition::Set(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_the_specification_activates_the_device_once() {
        assert_eq!(transition(0, 1, false), Transition::Set(1));
        assert_eq!(transition(1, 3, false), Transition::Set(3));
        assert_eq!(transition(3, 11, true), Transition::Set(11));
        assert_eq!(transition(11, 15, true), Transition::Activate(15));
        assert_eq!(
            transition(15, 15, true),
            Transition::Set(15),
            "no second activation"
        );
        assert_eq!(transition(15, 0, true), Transition::Reset);
    }

    #[test]
    fn invalid_features_leave_features_ok_clear() {
        assert_eq!(transition(3, 11, false), Transition::Set(3));
        assert_eq!(transition(3, 15, false), Transition::Set(3));
    }

    #[test]
    fn skipped_steps_and_cleared_bits_are_refused() {
        for (current, written) in [
            (0, 2),
            (0, 4),
            (0, 8),
            (1, 5),
            (3, 7),
            (3, 1),
            (15, 11),
            (0, 16),
            (0, !FAILED),
        ] {
            assert_eq!(
                transition(current, written, true),
                Transition::Refuse,
                "{current} -> {written}"
            );
        }
    }

    #[test]
    fn a_driver_may_set_failed_but_not_needs_reset() {
        assert_eq!(transition(3, 0x83, true), Transition::Set(0x83));
        assert_eq!(transition(0, 0x80, true), Transition::Set(0x80));
        assert_eq!(transition(15, 0x4f, true), Transition::Set(15));
    }
}
