//! The start of a pod step by step, from the timeline that its shim keeps, and the VM exits of its boot.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::state::Timeline;
use nacre_tests::containerd::Runtime;

use crate::containers::{Running, id, nacre};
use crate::results::{Measure, Results};
use crate::statistics::median;

/// Timelines of several starts.
pub struct Starts(Vec<Timeline>);

/// Starts `count` pods one after the other and reads their timelines.
pub fn measure(count: usize) -> Result<Starts> {
    let mut timelines = Vec::with_capacity(count);
    for number in 1..=count {
        let running = Running::start(Runtime::Nacre, &id("start", number), "echo up; exec sleep 1000")?;
        let shown = nacre(&["inspect", running.id()])?;
        running.end()?;
        let timeline: Timeline = serde_json::from_value(shown["timeline"].clone())
            .context("the timeline that nacre inspect gives")?;
        ensure!(
            !timeline.steps.is_empty(),
            "the timeline of a running pod is empty"
        );
        eprintln!("start {number} of {count}: {} steps", timeline.steps.len());
        timelines.push(timeline);
    }
    Ok(Starts(timelines))
}

impl Starts {
    /// Each step's name with the medians of when it was done and of how long it took, milliseconds.
    pub fn steps(&self) -> Vec<(String, f64, f64)> {
        let Some(first) = self.0.first() else {
            return Vec::new();
        };
        let of = |name: &str, pick: fn(&Timeline, usize) -> u64| -> f64 {
            let found = self.0.iter().filter_map(|timeline| {
                let at = timeline.steps.iter().position(|step| step.name == name)?;
                Some(pick(timeline, at) as f64 / 1e3)
            });
            median(&found.collect::<Vec<f64>>())
        };
        first
            .steps
            .iter()
            .map(|step| (step.name.clone(), of(&step.name, done), of(&step.name, took)))
            .collect()
    }

    /// Medians of the exits during boot by kind, most first.
    pub fn exits(&self) -> Vec<(String, f64)> {
        let mut counts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (kind, count) in self.0.iter().flat_map(|timeline| &timeline.boot_exits) {
            counts.entry(kind).or_default().push(*count as f64);
        }
        let mut medians: Vec<(String, f64)> = counts
            .into_iter()
            .map(|(kind, counts)| (kind.to_owned(), median(&counts)))
            .collect();
        medians.sort_by(|a, b| b.1.total_cmp(&a.1));
        medians
    }

    /// Milliseconds between two steps that the shim records: the guest's first instruction, its agent's first answer.
    fn boot(&self) -> Result<f64> {
        let done = |timeline: &Timeline, name: &str| -> Result<f64> {
            let found = timeline.steps.iter().find(|step| step.name == name);
            Ok(found
                .with_context(|| format!("the timeline has no step {name:?}"))?
                .done_us as f64
                / 1e3)
        };
        let boots: Result<Vec<f64>> = self
            .0
            .iter()
            .map(|timeline| Ok(done(timeline, "agent ready")? - done(timeline, "guest starts")?))
            .collect();
        Ok(median(&boots?))
    }

    /// Adds the boot, the steps and the exits.
    ///
    /// # Errors
    /// Where a timeline lacks the steps that bound the boot.
    pub fn report(&self, results: &mut Results) -> Result<()> {
        let note =
            "the guest's first instruction to its agent's first answer; wanted: at most 1000 under emulation";
        results.add(Measure::alone(
            "kernel entry to agent ready",
            "ms",
            self.boot()?,
            note,
        ));
        for (name, done, took) in self.steps() {
            let note = format!("done {done:.1} ms after containerd executed the shim");
            results.add(Measure::alone(format!("start: {name}"), "ms", took, note));
        }
        for (kind, count) in self.exits() {
            results.add(Measure::alone(
                format!("VM exits during boot: {kind}"),
                "",
                count,
                "",
            ));
        }
        Ok(())
    }
}

fn done(timeline: &Timeline, at: usize) -> u64 {
    timeline.steps[at].done_us
}

fn took(timeline: &Timeline, at: usize) -> u64 {
    let before = at
        .checked_sub(1)
        .map_or(0, |before| timeline.steps[before].done_us);
    timeline.steps[at].done_us.saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use nacre_protocol::state::TimelineStep;

    use super::*;

    #[test]
    fn medians_by_step_and_kind() {
        let timeline = |boot: u64, exits: u64| Timeline {
            steps: [("shim", 1000), ("boot", boot)]
                .map(|(name, done_us)| TimelineStep {
                    name: name.to_owned(),
                    done_us,
                })
                .to_vec(),
            boot_exits: [("io".to_owned(), exits), ("msr".to_owned(), 2)].into(),
            guest_kernel: None,
        };
        let starts = Starts(vec![timeline(5000, 10), timeline(9000, 30), timeline(7000, 20)]);
        assert_eq!(starts.steps()[1], ("boot".to_owned(), 7.0, 6.0));
        assert_eq!(starts.exits(), [("io".to_owned(), 20.0), ("msr".to_owned(), 2.0)]);
    }
}
