//! What was measured: a table for people, JSON for programs. No I/O here.

use anyhow::Result;
use serde::Serialize;

/// One number, beside the peer's where there is one.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Nacre's number.
    pub nacre: f64,
    /// The peer's number.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: Option<&'static str>,
    /// Nacre's to the peer's.
    pub ratio: Option<f64>,
    /// How it was measured, what is wanted. For people only.
    #[serde(skip)]
    pub note: String,
}

impl Measure {
    /// A number of Nacre's alone.
    pub fn alone(name: impl Into<String>, unit: &'static str, nacre: f64, note: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            unit,
            nacre,
            peer: None,
            peer_name: None,
            ratio: None,
            note: note.into(),
        }
    }
}

/// Everything measured so far.
#[derive(Debug, Default)]
pub struct Results(pub Vec<Measure>);

impl Results {
    /// Adds `measure` and tells it.
    pub fn add(&mut self, measure: Measure) {
        eprintln!("{}", line(&measure));
        self.0.push(measure);
    }

    /// All numbers as a JSON list.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.0)? + "\n")
    }

    /// All numbers, a line each.
    pub fn table(&self) -> String {
        let lines: Vec<String> = self.0.iter().map(line).collect();
        lines.join("\n")
    }
}

fn line(measure: &Measure) -> String {
    let Measure {
        name,
        unit,
        nacre,
        peer,
        peer_name,
        ratio,
        note,
    } = measure;
    let peer = match (peer, peer_name, ratio) {
        (Some(peer), Some(name), Some(ratio)) => format!("{name} {:>9}, ratio {ratio:.2}", number(*peer)),
        _ => String::new(),
    };
    format!("{name:54} {:>9} {unit:5}  {peer:28}  {note}", number(*nacre))
        .trim_end()
        .to_owned()
}

/// As many digits as mean something.
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
    fn json_has_the_six_fields() {
        let mut results = Results::default();
        results.add(Measure::alone("size", "MiB", 1.5, "wanted: less"));
        let list: serde_json::Value = serde_json::from_str(&results.json().unwrap()).unwrap();
        let mut keys: Vec<&String> = list[0].as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["nacre", "name", "peer", "peer_name", "ratio", "unit"]);
        assert!(results.table().contains("1.50 MiB") && results.table().contains("wanted: less"));
    }
}
