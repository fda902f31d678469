//! Whether a figure grows that was taken again and again. Pure. Called by `nacre-soak` after each taking.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

/// Series shorter than this have no trend: a third of them is one value.
const SHORTEST: usize = 6;

/// What a figure may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A count of what has an end: no value exceeds the least one before it.
    Count,
    /// What allocators and caches round, in the figure's unit: the median of the last third of the values exceeds that
    /// of the first third by this much at most. A peak is no growth, and neither are values that go up and down.
    Trend(u64),
}

/// A figure that was taken once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What it may do.
    pub rule: Rule,
}

impl Figure {
    /// A count.
    pub const fn count(name: &'static str, value: u64) -> Self {
        let rule = Rule::Count;
        Self { name, value, rule }
    }

    /// A figure that may rise by `bound` in the whole run.
    pub const fn trend(name: &'static str, value: u64, bound: u64) -> Self {
        let rule = Rule::Trend(bound);
        Self { name, value, rule }
    }
}

/// All figures of a run, in the order in which they were taken.
#[derive(Debug, Default)]
pub struct Series {
    values: BTreeMap<&'static str, (Rule, Vec<u64>)>,
    /// Those that have grown: each is reported once.
    reported: BTreeSet<&'static str>,
}

impl Series {
    /// Whether nothing was taken yet.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Adds what was taken at one time.
    pub fn add(&mut self, figures: &[Figure]) {
        for Figure { name, value, rule } in figures {
            let (_, values) = self.values.entry(name).or_insert_with(|| (*rule, Vec::new()));
            values.push(*value);
        }
    }

    /// The counts among `figures` that exceed those taken before. A process that is about to exit explains one, so the
    /// caller takes them again for a while.
    pub fn exceeded(&self, figures: &[Figure]) -> Vec<String> {
        let exceeds = |figure: &&Figure| {
            let earlier = self.values.get(figure.name).map_or(&[][..], |(_, values)| values);
            figure.rule == Rule::Count && earlier.iter().min().is_some_and(|least| figure.value > *least)
        };
        let found = figures.iter().filter(exceeds);
        found
            .map(|figure| format!("{}: {}", figure.name, figure.value))
            .collect()
    }

    /// Fails if a figure has grown that had not when this was called before.
    ///
    /// # Errors
    /// With all that have, and their values.
    pub fn has_not_grown(&mut self) -> Result<()> {
        let mut grown = Vec::new();
        for (name, (rule, values)) in &self.values {
            if grows(*rule, values) && self.reported.insert(name) {
                grown.push(format!("{name}: {values:?}"));
            }
        }
        ensure!(grown.is_empty(), "{}", grown.join("; "));
        Ok(())
    }

    /// The first and the last value of each figure, and the least and the greatest.
    pub fn summary(&self) -> Vec<String> {
        let line = |(name, (_, values)): (&&str, &(Rule, Vec<u64>))| {
            let (first, last) = (values.first()?, values.last()?);
            let (least, greatest) = (values.iter().min()?, values.iter().max()?);
            Some(format!("{name:34} {first:8} {last:8} {least:8} {greatest:8}"))
        };
        self.values.iter().filter_map(line).collect()
    }
}

fn grows(rule: Rule, values: &[u64]) -> bool {
    match rule {
        Rule::Count => {
            let mut least = u64::MAX;
            values.iter().any(|value| {
                let exceeds = *value > least;
                least = least.min(*value);
                exceeds
            })
        }
        Rule::Trend(bound) => {
            let third = values.len() / 3;
            values.len() >= SHORTEST
                && median(&values[values.len() - third..]).saturating_sub(median(&values[..third])) > bound
        }
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_may_fall_and_never_rises_again() {
        for (values, expected) in [
            (&[][..], false),
            (&[7], false),
            (&[7, 7, 7], false),
            (&[8, 7, 7], false),
            (&[7, 8], true),
            (&[7, 8, 7], true),
            // Hidden by a first value that was too large.
            (&[9, 7, 8], true),
        ] {
            assert_eq!(grows(Rule::Count, values), expected, "{values:?}");
        }
    }

    #[test]
    fn memory_may_go_up_and_down_but_not_up_for_good() {
        let rule = Rule::Trend(100);
        for (values, expected) in [
            (&[1000, 1100, 1050, 1000, 1100, 1050][..], false),
            // A peak.
            (&[1000, 1000, 1000, 5000, 1000, 1000, 1000, 1000, 1000], false),
            (&[1000, 1000, 1000, 1000, 1000, 1000, 1000, 5000, 1000], false),
            // It falls.
            (&[9000, 9000, 5000, 5000, 1000, 1000], false),
            (&[1000, 1020, 1040, 1060, 1080, 1100], false),
            // 30 more each time: 120 and more from third to third.
            (&[1000, 1030, 1060, 1090, 1120, 1150], true),
            (&[1000, 1000, 1000, 1000, 1000, 1000, 2000, 2000, 2000], true),
            // Too short for a trend.
            (&[1000, 2000, 3000], false),
        ] {
            assert_eq!(grows(rule, values), expected, "{values:?}");
        }
    }

    #[test]
    fn a_leak_is_named_with_its_values() {
        let mut series = Series::default();
        for taken in 0..6 {
            series.add(&[
                Figure::count("mounts", 30),
                Figure::count("cgroups", 12 + taken / 5),
                Figure::trend("shim KiB", 900 + 400 * taken, 1024),
            ]);
        }
        assert_eq!(
            series.has_not_grown().unwrap_err().to_string(),
            "cgroups: [12, 12, 12, 12, 12, 13]; shim KiB: [900, 1300, 1700, 2100, 2500, 2900]"
        );
        series.has_not_grown().unwrap();
        let later = [
            Figure::count("mounts", 31),
            Figure::count("cgroups", 12),
            Figure::count("links", 3),
            Figure::trend("shim KiB", 9000, 1024),
        ];
        assert_eq!(series.exceeded(&later), ["mounts: 31"]);
        assert_eq!(series.summary().len(), 3);
    }
}
