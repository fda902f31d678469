//! Rows as files have them: results.json of a run, and of `docs/benchmarks/`, which has the latest row of each name; and
//! the page that is rendered from them, with its plot of ratios.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::plot::{self, Bar};
use crate::results::{Measure, number};

/// The plots that a page shows if their files are there: the file's name, and what it shows.
const PLOTS: [(&str, &str); 3] = [
    (RATIOS, "Ratios to runc"),
    (START, "Steps of a start from a template"),
    (MEMORY, "Memory of the host by the number of pods"),
];
/// Nacre's time divided by runc's, a bar for each row.
pub const RATIOS: &str = "ratios.svg";
/// The steps of a start.
pub const START: &str = "start.svg";
/// The host's memory by the number of pods.
pub const MEMORY: &str = "memory.svg";
/// All rows, for programs.
pub const RESULTS: &str = "results.json";

/// A row of results.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    measure: Measure,
    /// When, with what, and on which host.
    measured: String,
}

impl Row {
    /// The row of `measure`, which was measured as `measured` says.
    pub fn new(measure: &Measure, measured: &str) -> Self {
        Self {
            measure: measure.clone(),
            measured: measured.to_owned(),
        }
    }

    /// Whether it is a part of another row, such as a step of a start.
    fn is_part(&self) -> bool {
        self.measure.name.contains(": ") || self.measure.name.contains(", ")
    }

    /// Cells of a table in Markdown; the last one has the number of the run.
    fn cells(&self, run: usize) -> String {
        let measure = &self.measure;
        let figure = |value: f64| {
            format!("{} {}", number(value), measure.unit)
                .trim_end()
                .to_owned()
        };
        let peer = measure.peer.map_or_else(String::new, |peer| {
            format!(
                "{}: {}",
                measure.peer_name.as_deref().unwrap_or("peer"),
                figure(peer)
            )
        });
        let spread = match (measure.ratio_p10, measure.ratio_p90) {
            (Some(p10), Some(p90)) => format!(" ({p10:.2} to {p90:.2})"),
            _ => String::new(),
        };
        let ratio = measure.ratio.map(|ratio| format!("**{ratio:.2}**{spread}"));
        format!(
            "| `{}` | {} | {peer} | {} | {} | {run} |\n",
            measure.name,
            figure(measure.nacre),
            ratio.unwrap_or_default(),
            measure.note.replace('|', "\\|"),
        )
    }
}

/// `rows` as results.json.
///
/// # Errors
/// If a figure is not a number.
pub fn json(rows: &[Row]) -> Result<String> {
    Ok(serde_json::to_string_pretty(rows)? + "\n")
}

/// `old` with the rows of `new` in the place of those of the same name.
fn merged(mut old: Vec<Row>, new: Vec<Row>) -> Vec<Row> {
    for row in new {
        match old
            .iter_mut()
            .find(|before| before.measure.name == row.measure.name)
        {
            Some(before) => *before = row,
            None => old.push(row),
        }
    }
    old
}

/// The page of `rows` in Markdown. `plots` is the path to the plots, which has those that `has_plot` knows.
pub fn page(rows: &[Row], plots: &str, has_plot: impl Fn(&str) -> bool) -> String {
    let mut runs: Vec<&str> = Vec::new();
    for row in rows {
        if !runs.contains(&row.measured.as_str()) {
            runs.push(&row.measured);
        }
    }
    let mut out = "# Benchmarks\n\nRendered by `nacre-bench` from results.json. The rows are explained in \
        docs/figures.md. A time under emulation means something only as a ratio: the median of the rounds' ratios, \
        and their 10th and 90th percentile.\n"
        .to_owned();
    for (file, title) in PLOTS {
        if has_plot(file) {
            // Writing to a String can't fail.
            let _ = write!(out, "\n## {title}\n\n![{title}]({plots}{file})\n");
        }
    }
    let table = |out: &mut String, parts: bool| {
        out.push_str("| row | nacre | beside | ratio | how | run |\n|---|---|---|---|---|---|\n");
        for row in rows.iter().filter(|row| row.is_part() == parts) {
            let run = runs.iter().position(|run| *run == row.measured);
            out.push_str(&row.cells(run.map_or(0, |index| index + 1)));
        }
    };
    out.push_str("\n## All rows\n\n");
    table(&mut out, false);
    if rows.iter().any(Row::is_part) {
        out.push_str("\n<details><summary>Parts and percentiles</summary>\n\n");
        table(&mut out, true);
        out.push_str("\n</details>\n");
    }
    out.push_str("\n## Runs\n\n");
    for (index, run) in runs.iter().enumerate() {
        let _ = writeln!(out, "{}. {run}", index + 1);
    }
    out
}

/// The plot of the ratios to runc, as an SVG file; None if no row has one.
pub fn ratios(rows: &[Row]) -> Option<String> {
    let bar = |row: &Row| {
        let row = &row.measure;
        let ratio = row.ratio.filter(|_| row.peer_name.as_deref() == Some("runc"))?;
        Some(Bar {
            label: row.name.clone(),
            from: 0.0,
            to: ratio,
            class: if row.name.ends_with("_floor") { "f" } else { "n" },
            text: format!("{ratio:.2}"),
        })
    };
    let measured: Vec<Bar> = rows.iter().filter(|row| !row.is_part()).filter_map(bar).collect();
    if measured.is_empty() {
        return None;
    }
    let mut bars = vec![Bar {
        label: "runc".to_owned(),
        from: 0.0,
        to: 1.0,
        class: "p",
        text: String::new(),
    }];
    bars.extend(measured);
    Some(plot::file(|out| plot::bars(out, &bars)))
}

/// Puts the rows and plots of the runs in the directories `runs` into `docs`, and renders the page there.
///
/// # Errors
/// If a run has no results.json of this version, or a file can't be read or written.
pub fn publish(runs: &[impl AsRef<Path>], docs: &Path) -> Result<()> {
    let directory = docs.join("benchmarks");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let published = directory.join(RESULTS);
    let mut rows = if published.exists() {
        read(&published)?
    } else {
        Vec::new()
    };
    for run in runs {
        let run = run.as_ref();
        rows = merged(rows, read(&run.join(RESULTS))?);
        for plot in [START, MEMORY] {
            if run.join(plot).exists() {
                fs::copy(run.join(plot), directory.join(plot)).with_context(|| format!("copying {plot}"))?;
            }
        }
    }
    write(&published, &json(&rows)?)?;
    if let Some(ratios) = ratios(&rows) {
        write(&directory.join(RATIOS), &ratios)?;
    }
    write(&docs.join("benchmarks.md"), &rendered(&rows, &directory))
}

fn rendered(rows: &[Row], directory: &Path) -> String {
    page(rows, "benchmarks/", |plot| directory.join(plot).exists())
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} has other fields", file.display()))
}

/// Writes `file`.
///
/// # Errors
/// As write(2), with the file's name.
pub fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, nacre: f64, measured: &str) -> Row {
        let measure = Measure::of_rounds((name, "ms", "x | y"), &[nacre; 5], ("runc", &[2.0; 5]));
        Row::new(&measure, measured)
    }

    #[test]
    fn the_published_page_is_rendered_from_its_results() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let directory = docs.join("benchmarks");
        let rows = read(&directory.join(RESULTS)).unwrap();
        let page = fs::read_to_string(docs.join("benchmarks.md")).unwrap();
        assert_eq!(page, rendered(&rows, &directory));
        let plot = fs::read_to_string(directory.join(RATIOS)).ok();
        assert_eq!(plot, ratios(&rows));
    }

    #[test]
    fn a_newer_row_takes_the_place_of_the_one_of_its_name() {
        let before = vec![row("start", 3.0, "monday"), row("exec", 1.0, "monday")];
        let after = merged(
            before,
            vec![row("start", 1.0, "friday"), row("pod", 1.0, "friday")],
        );
        let names: Vec<&str> = after.iter().map(|row| row.measure.name.as_str()).collect();
        assert_eq!(names, ["start", "exec", "pod"]);
        let page = page(&after, "", |plot| plot == START);
        assert!(
            page.contains("| `start` | 1 ms | runc: 2 ms | **0.50** (0.50 to 0.50) | x \\| y; "),
            "{page}"
        );
        assert!(page.contains(" | 1 |\n| `exec`"), "{page}");
        assert!(
            page.ends_with("1. friday\n2. monday\n") && page.contains("(start.svg)"),
            "{page}"
        );
        assert!(!page.contains(MEMORY) && !page.contains("<details>"), "{page}");
    }

    #[test]
    fn a_row_is_the_same_after_it_was_written_and_read() {
        let rows = [row("start", 3.0, "monday"), row("start, p10", 3.0, "monday")];
        let text = json(&rows).unwrap();
        let again: Vec<Row> = serde_json::from_str(&text).unwrap();
        assert_eq!(again, rows);
        assert!(page(&rows, "", |_| false).contains("<details>"));
        let plot = ratios(&rows).unwrap();
        assert!(plot.contains(">start<") && !plot.contains("p10"), "{plot}");
        assert_eq!(ratios(&[]), None);
    }

    #[test]
    fn a_row_has_eight_fields_and_those_that_were_measured() {
        let keys = |measure: &Measure| {
            let value = serde_json::to_value(Row::new(measure, "monday")).unwrap();
            value.as_object().unwrap().len()
        };
        let alone = Measure::alone("size", "MiB", 1.5, "wanted: less");
        assert_eq!(keys(&alone), 8);
        assert_eq!(keys(&alone.beside(Some(3.0))), 10);
        let spread = Measure::of_rounds(("a", "ms", ""), &[1.0; 5], ("runc", &[2.0; 5]));
        assert_eq!(keys(&spread), 10);
    }
}
