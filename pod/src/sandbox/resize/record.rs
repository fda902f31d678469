//! The VM's size in the pod's state on disk. The VMM reports how much memory the guest has plugged in; one that
//! is taken over may do so at any rate, so these reports are written at most once in [`INTERVAL`].

use std::time::{Duration, Instant};

use super::super::Sandbox;
use super::super::queue::Event;
use super::Sizing;

/// The least time between two writes that the VMM causes.
const INTERVAL: Duration = Duration::from_secs(1);

/// When the size was written.
#[derive(Debug, Default)]
pub(super) struct Writes {
    last: Option<Instant>,
    /// Another write is due later.
    is_due: bool,
}

/// What to do about a report.
#[derive(Debug, PartialEq, Eq)]
enum Write {
    Now,
    /// After this time.
    Later(Duration),
    /// A write that is due will have it.
    None,
}

impl Writes {
    /// The VMM has reported something.
    fn reported(&mut self, now: Instant) -> Write {
        if self.is_due {
            return Write::None;
        }
        let since = self.last.map(|last| now.saturating_duration_since(last));
        match since.and_then(|since| INTERVAL.checked_sub(since)) {
            Some(left) if !left.is_zero() => {
                self.is_due = true;
                Write::Later(left)
            }
            _ => {
                self.last = Some(now);
                Write::Now
            }
        }
    }

    /// The write that was due.
    fn due(&mut self, now: Instant) {
        *self = Self {
            last: Some(now),
            is_due: false,
        };
    }
}

impl Sandbox {
    /// The guest has plugged in or given back memory until it had `mib` besides that at boot.
    pub(in super::super) fn memory_plugged(&mut self, mib: u32) {
        let Some(sizing) = &mut self.sizing else { return };
        let plugged_mib = mib.min(sizing.needed.vm().pluggable_mib());
        if plugged_mib == sizing.plugged_mib {
            return;
        }
        sizing.plugged_mib = plugged_mib;
        match sizing.writes.reported(Instant::now()) {
            Write::Now => self.record_size(),
            Write::Later(left) => self.queue.send_after(left, Event::SizeDue),
            Write::None => {}
        }
    }

    /// A write that was put off is due.
    pub(in super::super) fn size_due(&mut self) {
        if let Some(sizing) = &mut self.sizing {
            sizing.writes.due(Instant::now());
        }
        self.record_size();
    }

    /// Writes the VM's size to the pod's state on disk, if it is another.
    pub(super) fn record_size(&mut self) {
        let recorded = self.sizing.as_ref().map(Sizing::recorded);
        if recorded != self.pod.size {
            self.pod.size = recorded;
            self.write_pod();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_written_once_in_the_interval_and_the_last_one_is() {
        let mut writes = Writes::default();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(writes.reported(at(0)), Write::Now);
        assert_eq!(writes.reported(at(400)), Write::Later(Duration::from_millis(600)));
        for ms in 401..999 {
            assert_eq!(writes.reported(at(ms)), Write::None);
        }
        writes.due(at(1000));
        assert_eq!(
            writes.reported(at(1001)),
            Write::Later(Duration::from_millis(999))
        );
        writes.due(at(2000));
        assert_eq!(writes.reported(at(3000)), Write::Now);
    }
}
