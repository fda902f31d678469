//! How many lines each place in the code may log. A guest can cause the lines of many places, some of them as
//! often as it likes, and a line that the engine logs is kept by the host. Pure.

use std::collections::BTreeMap;

/// Where a line is logged: file, line and column of the source.
pub type CallSite = (&'static str, u32, u32);

/// How many lines a place may log at once.
const BURST: u32 = 64;
/// After this long it may log one more, nanoseconds.
const REFILL_NS: u64 = 10_000_000_000;

/// What a line says about its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// How many lines of this place were left out since its last one.
    pub left_out: u64,
    /// Further lines are left out until time has passed.
    pub is_last: bool,
}

/// The lines that one place may still log.
#[derive(Debug)]
struct Budget {
    lines: u32,
    /// Up to when it was refilled, nanoseconds.
    refilled_ns: u64,
    left_out: u64,
}

/// The budgets of all places. There are as many as the program has lines of code that log.
#[derive(Debug, Default)]
pub struct Limits(BTreeMap<CallSite, Budget>);

impl Limits {
    /// No place has logged anything yet.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Whether a line of `site` may be logged at `now_ns` (monotonic); None if it is left out.
    pub fn admit(&mut self, site: CallSite, now_ns: u64) -> Option<Admitted> {
        let budget = self.0.entry(site).or_insert(Budget {
            lines: BURST,
            refilled_ns: now_ns,
            left_out: 0,
        });
        let refills = now_ns.saturating_sub(budget.refilled_ns) / REFILL_NS;
        budget.refilled_ns = budget
            .refilled_ns
            .saturating_add(refills.saturating_mul(REFILL_NS));
        let refills = u32::try_from(refills).unwrap_or(BURST);
        budget.lines = budget.lines.saturating_add(refills).min(BURST);
        let Some(left) = budget.lines.checked_sub(1) else {
            budget.left_out = budget.left_out.saturating_add(1);
            return None;
        };
        budget.lines = left;
        Some(Admitted {
            left_out: std::mem::take(&mut budget.left_out),
            is_last: left == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: CallSite = ("a.rs", 1, 1);
    const THERE: CallSite = ("a.rs", 2, 1);

    #[test]
    fn a_place_logs_a_burst_and_then_one_line_per_interval() {
        let mut limits = Limits::new();
        let admitted: Vec<_> = (0..10_000).filter_map(|n| limits.admit(HERE, n)).collect();
        assert_eq!(admitted.len(), BURST as usize);
        let last: Vec<bool> = admitted.iter().map(|line| line.is_last).collect();
        assert_eq!(last.iter().position(|is_last| *is_last), Some(BURST as usize - 1));
        // Another place is not concerned.
        assert!(limits.admit(THERE, 10_000).is_some());
        assert_eq!(limits.admit(HERE, REFILL_NS - 1), None);
        let after = limits.admit(HERE, REFILL_NS).unwrap();
        let left_out = 10_000 - u64::from(BURST) + 1;
        assert_eq!((after.left_out, after.is_last), (left_out, true));
        assert_eq!(limits.admit(HERE, REFILL_NS), None);
    }

    #[test]
    fn a_place_that_was_silent_has_its_burst_again_and_no_more() {
        let mut limits = Limits::new();
        for begun in [0, u64::from(BURST) * REFILL_NS, 1_000_000 * REFILL_NS, u64::MAX] {
            let admitted = (0..1000).filter_map(|_| limits.admit(HERE, begun)).count();
            assert_eq!(admitted, BURST as usize, "{begun}");
        }
    }
}
