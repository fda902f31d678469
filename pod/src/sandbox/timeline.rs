//! Records the steps of a pod's start, and writes timeline.json, which `nacre inspect` reads.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nacre_protocol::state::{Timeline, TimelineStep};

/// Most steps recorded. A start has fewer; a VMM that was taken over may send any number.
const MAX_STEPS: usize = 128;

/// The step at which the host's clock and the guest's clock are both known.
pub const AGENT_CONNECTED: &str = "agent connected";

/// The timeline of one pod.
#[derive(Debug)]
pub struct Recorder {
    directory: PathBuf,
    begun_ns: u64,
    timeline: Timeline,
}

impl Recorder {
    /// For the pod in `directory`; times count from `begun_ns` (monotonic).
    pub fn new(directory: PathBuf, begun_ns: u64) -> Self {
        Self {
            directory,
            begun_ns,
            timeline: Timeline::default(),
        }
    }

    /// Records that `name` was finished at `at_ns` (monotonic).
    pub fn step(&mut self, name: impl Into<String>, at_ns: u64) {
        if self.timeline.steps.len() < MAX_STEPS {
            let done_us = at_ns.saturating_sub(self.begun_ns) / 1000;
            self.timeline.steps.push(TimelineStep {
                name: name.into(),
                done_us,
            });
        }
    }

    /// Records where the guest came from.
    pub fn origin(&mut self, origin: String) {
        self.timeline.origin = Some(origin);
    }

    /// Records `uname -r` of the guest.
    pub fn guest_kernel(&mut self, release: String) {
        self.timeline.guest_kernel = Some(release);
    }

    /// Records when the guest's kernel and its init started. The arguments are the guest's clock,
    /// microseconds since its kernel's start, when init started and when the agent connected. If both are 0,
    /// the guest continues from a snapshot, and has no such times.
    pub fn guest_clock(&mut self, init_started_us: u64, dialed_us: u64) {
        if (init_started_us, dialed_us) == (0, 0) {
            return;
        }
        let Some(connected) = self
            .timeline
            .steps
            .iter()
            .find(|step| step.name == AGENT_CONNECTED)
        else {
            return;
        };
        let connected = connected.done_us;
        let mut guest = |name: &str, at_us: u64| {
            let done_us = connected.saturating_sub(dialed_us.saturating_sub(at_us));
            self.timeline.steps.push(TimelineStep {
                name: name.into(),
                done_us,
            });
        };
        guest("guest: kernel entered", 0);
        guest("guest: init started", init_started_us);
    }

    /// Records the VM exits of the boot, by kind.
    pub fn boot_exits(&mut self, exits: BTreeMap<String, u64>) {
        self.timeline.boot_exits = exits;
    }

    /// The timeline so far, sorted by time.
    pub fn timeline(&self) -> Timeline {
        let mut timeline = self.timeline.clone();
        timeline.steps.sort_by_key(|step| step.done_us);
        timeline
    }

    /// Writes timeline.json; a failure is logged.
    pub fn write(&self) {
        if let Err(error) = crate::state::write_timeline(&self.directory, &self.timeline()) {
            crate::log::error(format_args!("writing the timeline: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_the_order_of_time_and_bounded() {
        let mut recorder = Recorder::new("/".into(), 1_000_000);
        recorder.step("b", 5_000_000);
        recorder.step("a", 2_000_000);
        recorder.step("early", 0);
        let names: Vec<_> = recorder
            .timeline()
            .steps
            .iter()
            .map(|step| (step.name.clone(), step.done_us))
            .collect();
        assert_eq!(
            names,
            [("early".into(), 0), ("a".into(), 1000), ("b".into(), 4000)]
        );
        recorder.step(AGENT_CONNECTED, 9_000_000);
        recorder.guest_clock(3_000, 5_000);
        let at = |name: &str| {
            recorder
                .timeline()
                .steps
                .iter()
                .find(|step| step.name == name)
                .map(|step| step.done_us)
        };
        assert_eq!(
            (at("guest: kernel entered"), at("guest: init started")),
            (Some(3_000), Some(6_000))
        );
        let count = recorder.timeline().steps.len();
        recorder.guest_clock(0, 0);
        assert_eq!(recorder.timeline().steps.len(), count, "a restored guest");
        (0..1000).for_each(|_| recorder.step("x", 0));
        assert_eq!(recorder.timeline().steps.len(), MAX_STEPS);
    }
}
