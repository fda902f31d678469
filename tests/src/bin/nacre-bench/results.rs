//! The measured figures, and a table of them. No I/O but progress on standard error.

use std::borrow::Cow;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::runtimes::{Build, MeasuredRuntimes};
use crate::statistics::{median, ratios, spread};

/// One row: a figure of Nacre's, beside the peer's and the other build's if they have one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The row's name, for programs; stable.
    pub name: String,
    /// Unit of the figures.
    pub unit: Cow<'static, str>,
    /// The installed build's figure. In a `_floor` row, the null shim's.
    pub nacre: f64,
    /// The peer's figure.
    pub peer: Option<f64>,
    /// The peer's name.
    pub peer_name: Option<Cow<'static, str>>,
    /// Nacre's figure divided by the peer's. For times, the median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// The 10th percentile of the rounds' ratios to the peer; None if there were few rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_p10: Option<f64>,
    /// The 90th percentile of the rounds' ratios to the peer; None if there were few rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_p90: Option<f64>,
    /// The other build's figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<f64>,
    /// Nacre's figure divided by the other build's. For times, the median of the rounds' ratios.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_ratio: Option<f64>,
    /// How it was measured and what is wanted, for people.
    pub note: String,
}

impl Measure {
    /// A figure of Nacre's alone.
    pub fn alone(name: impl Into<String>, unit: &'static str, nacre: f64, note: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            unit: unit.into(),
            nacre,
            note: note.into(),
            ..Self::default()
        }
    }

    /// The medians of rounds in each of which `nacre` and the peer were measured, and of the rounds' ratios.
    pub fn of_rounds(
        (name, unit, note): (&str, &'static str, &str),
        nacre: &[f64],
        (peer_name, peer): (&'static str, &[f64]),
    ) -> Self {
        let ratios = ratios(nacre, peer);
        let spread = spread(&ratios);
        Self {
            peer: Some(median(peer)),
            peer_name: Some(peer_name.into()),
            ratio: Some(median(&ratios)),
            ratio_p10: spread.map(|(p10, _)| p10),
            ratio_p90: spread.map(|(_, p90)| p90),
            note: format!("{note}; {}", describe(&ratios)),
            ..Self::alone(name, unit, median(nacre), "")
        }
    }

    /// Adds the other build's figure and the ratio of the two.
    pub fn beside(mut self, other: Option<f64>) -> Self {
        self.other = other;
        self.other_ratio = other.map(|other| self.nacre / other);
        self
    }
}

/// How many rounds there were, and how their `ratios` scatter: few are listed.
pub fn describe(ratios: &[f64]) -> String {
    let rounds = ratios.len();
    if let Some((p10, p90)) = spread(ratios) {
        return format!(
            "medians of {rounds} rounds, ratio: median of the rounds' ratios, p10..p90 {p10:.2}..{p90:.2}"
        );
    }
    let listed: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    match rounds {
        1 => "one round".to_owned(),
        _ => format!("medians of {rounds} rounds, ratios {}", listed.join(", ")),
    }
}

/// All rows so far.
#[derive(Debug, Default)]
pub struct Results(pub Vec<Measure>);

impl Results {
    /// Adds a row and prints it on standard error.
    pub fn add(&mut self, measure: Measure) {
        eprintln!("{}", line(&measure));
        self.0.push(measure);
    }

    /// Measures each build and adds a row named `name`; no row if a build has no figure.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn add_each(
        &mut self,
        runtimes: &MeasuredRuntimes,
        (name, unit, note): (&str, &'static str, &str),
        measure: impl Fn(&Build) -> Result<Option<f64>>,
    ) -> Result<()> {
        let mut figures = Vec::new();
        for build in runtimes.builds() {
            let Some(figure) = measure(build)? else {
                eprintln!("{name}: not measured");
                return Ok(());
            };
            figures.push(figure);
        }
        if let Some(nacre) = figures.first() {
            self.add(Measure::alone(name, unit, *nacre, note).beside(figures.get(1).copied()));
        }
        Ok(())
    }

    /// All rows, a line each.
    pub fn table(&self) -> String {
        let lines: Vec<String> = self.0.iter().map(line).collect();
        lines.join("\n")
    }
}

fn line(measure: &Measure) -> String {
    let beside = |name: &str, figure: Option<f64>, ratio: Option<f64>| match (figure, ratio) {
        (Some(figure), Some(ratio)) => format!("{name} {:>9}, ratio {ratio:.2}", number(figure)),
        _ => String::new(),
    };
    let peer = beside(
        measure.peer_name.as_deref().unwrap_or_default(),
        measure.peer,
        measure.ratio,
    );
    let other = beside("other", measure.other, measure.other_ratio);
    format!(
        "{:32} {:>9} {:5}  {peer:28}  {other:28}  {}",
        measure.name,
        number(measure.nacre),
        measure.unit,
        measure.note
    )
    .trim_end()
    .to_owned()
}

/// `value` with two decimals, or none if it is whole or at least 100.
pub fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_both_builds_and_the_note() {
        let text = line(&Measure::alone("size", "MiB", 1.5, "wanted: less").beside(Some(3.0)));
        assert!(
            text.contains("1.50 MiB") && text.contains("wanted: less") && text.contains("ratio 0.50"),
            "{text}"
        );
    }

    #[test]
    fn rounds_give_medians_and_the_spread_of_their_ratios() {
        let row = ("restore", "ms", "to the first answer");
        let measure = Measure::of_rounds(row, &[2.0, 4.0, 3.0, 2.0, 4.0], ("QEMU", &[4.0; 5]));
        let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-9;
        assert!(near(Some(measure.nacre), 3.0) && near(measure.peer, 4.0) && near(measure.ratio, 0.75));
        assert!(near(measure.ratio_p10, 0.5) && near(measure.ratio_p90, 1.0));
        let expected = "to the first answer; medians of 5 rounds, ratio: median of the rounds' ratios, p10..p90 0.50..1.00";
        assert_eq!(measure.note, expected);
    }

    #[test]
    fn a_row_of_few_rounds_has_no_spread() {
        let row = ("concurrent100", "ms", "until all have ended");
        let one = Measure::of_rounds(row, &[2.0], ("runc", &[4.0]));
        assert_eq!(one.note, "until all have ended; one round");
        let two = Measure::of_rounds(row, &[2.0, 3.0], ("runc", &[4.0, 4.0]));
        assert!(
            two.note.ends_with("medians of 2 rounds, ratios 0.50, 0.75"),
            "{two:?}"
        );
        assert!(two.ratio_p10.is_none() && two.ratio_p90.is_none());
    }
}
