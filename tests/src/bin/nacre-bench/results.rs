//! The measured figures: a table for people, JSON for programs. No I/O but progress on standard error.

use anyhow::Result;
use serde::Serialize;

use crate::runtimes::{Build, MeasuredRuntimes};

/// One row: a figure of Nacre's, beside the peer's and the other build's if they have one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measure {
    /// The row's name, for programs; stable.
    pub name: String,
    /// Unit of the figures.
    pub unit: &'static str,
    /// The installed build's figure. In a `_floor` row, the null shim's.
    pub nacre: f64,
    /// The peer's figure.
    pub peer: Option<f64>,
    /// The peer's name.
    pub peer_name: Option<&'static str>,
    /// Nacre's figure divided by the peer's. For times, the median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// The other build's figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<f64>,
    /// Nacre's figure divided by the other build's. For times, the median of the rounds' ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_ratio: Option<f64>,
    /// How it was measured and what is wanted, for people.
    #[serde(skip)]
    pub note: String,
}

impl Measure {
    /// A figure of Nacre's alone.
    pub fn alone(name: impl Into<String>, unit: &'static str, nacre: f64, note: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            unit,
            nacre,
            note: note.into(),
            ..Self::default()
        }
    }

    /// Adds the other build's figure and the ratio of the two.
    pub fn beside(mut self, other: Option<f64>) -> Self {
        self.other = other;
        self.other_ratio = other.map(|other| self.nacre / other);
        self
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

    /// All rows as a JSON list.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.0)? + "\n")
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
    let peer = beside(measure.peer_name.unwrap_or_default(), measure.peer, measure.ratio);
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

    fn keys(measure: Measure) -> Vec<String> {
        let mut results = Results::default();
        results.add(measure);
        let list: serde_json::Value = serde_json::from_str(&results.json().unwrap()).unwrap();
        list[0].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn json_has_six_fields_and_two_more_beside_another_build() {
        let alone = Measure::alone("size", "MiB", 1.5, "wanted: less");
        let six = ["nacre", "name", "peer", "peer_name", "ratio", "unit"];
        let mut found = keys(alone.clone());
        found.sort();
        assert_eq!(found, six);
        assert_eq!(keys(alone.clone().beside(Some(3.0))).len(), 8);
        let text = line(&alone.beside(Some(3.0)));
        assert!(
            text.contains("1.50 MiB") && text.contains("wanted: less") && text.contains("ratio 0.50"),
            "{text}"
        );
    }
}
