//! The steps of a pod's start, from the timeline that its shim keeps, and the VM exits of its boot.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::state::Timeline;

use crate::containers::{Running, id, nacre};
use crate::origin;
use crate::results::{Measure, Results};
use crate::runtimes::{Build, MeasuredRuntimes};
use crate::statistics::median;

/// Timelines of several starts of each build.
pub struct Starts {
    /// The installed build.
    pub nacre: Timelines,
    /// The other build.
    other: Option<Timelines>,
    /// The installed build without templates, if it has any.
    pub cold: Option<Timelines>,
}

/// Timelines of several starts of one build.
pub struct Timelines(Vec<Timeline>);

/// Starts `count` pods of each build, one after the other and in turns, and reads their timelines.
pub fn measure(runtimes: &MeasuredRuntimes, count: usize) -> Result<Starts> {
    let cold = runtimes.nacre.has_templates.then_some(&runtimes.cold);
    let builds: Vec<&Build> = runtimes.builds().chain(cold).collect();
    let mut timelines: Vec<Timelines> = builds.iter().map(|_| Timelines(Vec::new())).collect();
    for number in 1..=count {
        for (build, timelines) in builds.iter().zip(&mut timelines) {
            let timeline = start(build, number)?;
            let name = build.shim_runtime.name;
            eprintln!(
                "start {number} of {count}: {name}: {} steps",
                timeline.steps.len()
            );
            timelines.0.push(timeline);
        }
    }
    let cold = cold.and_then(|_| timelines.pop());
    let mut timelines = timelines.into_iter();
    Ok(Starts {
        nacre: timelines.next().context("no build")?,
        other: timelines.next(),
        cold,
    })
}

fn start(build: &Build, number: usize) -> Result<Timeline> {
    let id = id(&format!("{}-start", build.shim_runtime.name), number);
    let running = Running::start(&build.shim_runtime, &id, "echo up; exec sleep 1000")?;
    let shown = nacre(build, &["inspect", running.id()])?;
    running.end()?;
    let timeline: Timeline =
        serde_json::from_value(shown["timeline"].clone()).context("parsing the timeline of nacre inspect")?;
    ensure!(
        !timeline.steps.is_empty(),
        "the timeline of a running pod has no steps"
    );
    origin::check_origin(timeline.origin.as_deref(), build.has_templates).context(id)?;
    Ok(timeline)
}

impl Starts {
    /// The starts in which the installed build's guests booted.
    pub fn booted(&self) -> &Timelines {
        self.cold.as_ref().unwrap_or(&self.nacre)
    }

    /// Adds the boot, the steps and the exits.
    ///
    /// # Errors
    /// If a timeline lacks the steps between which the boot is measured.
    pub fn report(&self, results: &mut Results) -> Result<()> {
        let note =
            "the guest's first instruction to its agent's first answer; wanted: at most 1000 under emulation";
        // None if the other build's guests do not boot.
        let other = self.other.as_ref().and_then(|other| other.boot().ok());
        results.add(Measure::alone("boot", "ms", self.booted().boot()?, note).beside(other));
        let others = self.other.as_ref().map(Timelines::steps).unwrap_or_default();
        for (name, done, took) in self.nacre.steps() {
            let note = format!("done {done:.1} ms after containerd executed the shim");
            let other = others.iter().find(|other| other.0 == name).map(|other| other.2);
            results.add(Measure::alone(format!("step: {name}"), "ms", took, note).beside(other));
        }
        let others = self.other.as_ref().map(Timelines::exits).unwrap_or_default();
        for (kind, count) in self.booted().exits() {
            let other = others.iter().find(|other| other.0 == kind).map(|other| other.1);
            let note = "VM exits until the agent is ready";
            results.add(Measure::alone(format!("exits: {kind}"), "", count, note).beside(other));
        }
        Ok(())
    }
}

impl Timelines {
    /// Each step's name, with the medians of the time at which it was done and of its duration, in
    /// milliseconds.
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

    /// Medians of the VM exits during boot by kind, most frequent first.
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

    /// Median of the milliseconds between the guest's first instruction and its agent's first answer.
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
            origin: None,
        };
        let starts = Timelines(vec![timeline(5000, 10), timeline(9000, 30), timeline(7000, 20)]);
        assert_eq!(starts.steps()[1], ("boot".to_owned(), 7.0, 6.0));
        assert_eq!(starts.exits(), [("io".to_owned(), 20.0), ("msr".to_owned(), 2.0)]);
    }
}
