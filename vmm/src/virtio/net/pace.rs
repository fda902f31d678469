//! How the host schedules the worker: as a task that waits its turn while much data flows, and as any other task
//! otherwise. Used by the data path, on the worker's thread.
//!
//! A task that wakes up may take the CPU from the one that woke it. For a request and its answer that is good. But
//! a guest that sends much data and shares a CPU with the worker would be interrupted for each packet, and a sender
//! on the host, too. With SCHED_BATCH the worker does not do that, and finds several packets when it is its turn.
//! If another CPU is idle, the worker runs there at once in either case.
#![allow(unsafe_code, reason = "sched_setscheduler is a foreign function")]

use std::io;

/// Packets of this length and longer are segments that are left to the other side: much data.
const LARGE: u32 = 4096;
/// What a large packet counts; a small one counts 1. An acknowledgement for each of them must not outweigh them.
const WEIGHT: u32 = 4;
/// The count ends here, so that small packets are noticed soon.
const MOST: u32 = 64;
/// Up to this count, the worker is as other tasks again.
const FEW: u32 = 16;
/// From this count on, it waits its turn.
const MANY: u32 = 32;

/// How many packets have passed, in either direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    large: u32,
    small: u32,
}

impl Passed {
    /// Adds a packet of `length` bytes.
    pub fn add(&mut self, length: u32) {
        let counted = if length >= LARGE {
            &mut self.large
        } else {
            &mut self.small
        };
        *counted = counted.saturating_add(1);
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Pace {
    /// How much large packets outweigh small ones of late.
    count: u32,
    is_batch: bool,
}

impl Pace {
    /// Makes the host schedule the calling thread as the packets that `passed` in a turn suggest. A system call
    /// only if that changes.
    ///
    /// # Errors
    /// As sched_setscheduler(2).
    pub fn follow(&mut self, passed: Passed) -> io::Result<()> {
        let more = passed.large.saturating_mul(WEIGHT);
        let count = self.count.saturating_add(more).saturating_sub(passed.small);
        self.count = count.min(MOST);
        let Some(is_batch) = self.change() else {
            return Ok(());
        };
        let policy = if is_batch {
            libc::SCHED_BATCH
        } else {
            libc::SCHED_OTHER
        };
        let parameter = libc::sched_param { sched_priority: 0 };
        // SAFETY: the kernel reads one `sched_param`; 0 is the calling thread.
        if unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.is_batch = is_batch;
        Ok(())
    }

    /// Whether the thread is to wait its turn, if that is new.
    fn change(&self) -> Option<bool> {
        match (self.is_batch, self.count) {
            (false, count) if count >= MANY => Some(true),
            (true, ..=FEW) => Some(false),
            (false | true, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: no memory is involved; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    /// Lets `packets` pass; returns how often the policy has changed.
    fn changes(pace: &mut Pace, packets: impl IntoIterator<Item = u32>) -> usize {
        let mut changes = 0;
        for length in packets {
            let before = policy();
            let mut passed = Passed::default();
            passed.add(length);
            pace.follow(passed).unwrap();
            changes += usize::from(policy() != before);
        }
        changes
    }

    #[test]
    fn a_transfer_with_acknowledgements_waits_its_turn_and_requests_do_not() {
        let mut pace = Pace::default();
        assert_eq!(changes(&mut pace, [78; 1000]), 0);
        let transfer = [65_000, 78].into_iter().cycle().take(1000);
        assert_eq!(changes(&mut pace, transfer), 1);
        assert_eq!(policy(), libc::SCHED_BATCH);
        assert_eq!(changes(&mut pace, [78; 1000]), 1);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }

    #[test]
    fn the_policy_changes_at_most_once_in_eight_packets() {
        let mut pace = Pace::default();
        let swings = [65_000; 8].into_iter().chain([78; 16]).cycle().take(24 * 10);
        assert!(changes(&mut pace, swings) <= 20);
    }
}
