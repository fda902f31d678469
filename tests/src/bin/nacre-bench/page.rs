//! The page with plots and a table, in one HTML file that needs no network. Pure.

use std::fmt::Write as _;

use crate::plot::{self, Bar, escape};
use crate::pods_memory::Growth;
use crate::published::{MEMORY, START};
use crate::results::{Results, number};
use crate::rounds::Rounds;
use crate::start::{Starts, Timelines};
use crate::statistics::{median, spread};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}svg{width:100%;height:auto}\
table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:left;\
border-bottom:1px solid #ddd}td.r{text-align:right;font-variant-numeric:tabular-nums}";

/// What is plotted; what was not measured is empty.
#[derive(Default)]
pub struct Plotted {
    /// Commands that were timed.
    pub rounds: Vec<Rounds>,
    /// Starts, step by step.
    pub starts: Option<Starts>,
    /// The host's memory by the number of pods.
    pub growths: Vec<Growth>,
}

impl Plotted {
    /// Plots as files of their own, each with its name.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        if let Some(starts) = &self.starts {
            let bars = steps(&starts.nacre, "n");
            files.push((START, plot::file(|out| plot::bars(out, &bars))));
        }
        if !self.growths.is_empty() {
            files.push((MEMORY, plot::file(|out| plot_memory(out, &self.growths))));
        }
        files
    }
}

/// The whole page.
pub fn html(results: &Results, plotted: &Plotted) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Nacre beside runc</title><style>{STYLE}{}</style>\n\
         <h1>Nacre beside runc</h1>\n",
        plot::STYLE
    );
    for rounds in &plotted.rounds {
        of_rounds(&mut out, rounds);
    }
    if let Some(starts) = &plotted.starts {
        of_starts(&mut out, starts);
    }
    if !plotted.growths.is_empty() {
        of_memory(&mut out, &plotted.growths);
    }
    table(&mut out, results);
    out.push_str("</html>\n");
    out
}

fn of_rounds(out: &mut String, rounds: &Rounds) {
    let ratios = rounds.ratios();
    let scatter = spread(&ratios).map(|(p10, p90)| format!(" (p10 to p90: {p10:.2} to {p90:.2})"));
    let words = format!(
        "Medians of {} rounds in which the runtimes take turns. Median of the rounds' ratios of nacre to runc: \
         {:.2}{}. The floor is a shim that does nothing: what ctr and containerd take themselves. Above the floor the \
         ratio is {:.2}. Times under emulation mean something only as ratios.",
        rounds.rounds.len(),
        median(&ratios),
        scatter.unwrap_or_default(),
        rounds.ratio_above_floor()
    );
    section(out, rounds.command, &words);
    plot::bars(out, &medians(rounds));
    let title = format!("{}: ratio of each round", rounds.command);
    section(out, &title, "Nacre's time divided by runc's.");
    plot::bars(out, &each_round(&ratios));
}

fn of_starts(out: &mut String, starts: &Starts) {
    let words = "Medians, milliseconds since containerd executed the shim.";
    section(out, "Steps of a start", words);
    plot::bars(out, &steps(&starts.nacre, "n"));
    if let Some(cold) = &starts.cold {
        section(out, "Steps of a start with templates off", words);
        plot::bars(out, &steps(cold, "o"));
    }
    let words = "Medians, from the guest's first instruction until its agent is ready.";
    section(out, "VM exits during boot", words);
    plot::bars(out, &exits(starts));
}

fn of_memory(out: &mut String, growths: &[Growth]) {
    let words =
        "What the host's available memory (MemAvailable) has fallen by when that many idle busybox pods run.";
    section(out, "Memory by the number of pods", words);
    plot_memory(out, growths);
}

fn plot_memory(out: &mut String, growths: &[Growth]) {
    let line = |growth: &Growth| plot::Line {
        label: format!("{}: {:.1} MiB each", growth.name, growth.per_pod()),
        points: growth.points.clone(),
        class: match growth.name {
            "nacre" => "n",
            "runc" => "p",
            "other" => "o",
            _ => "f",
        },
    };
    let lines: Vec<plot::Line> = growths.iter().map(line).collect();
    plot::lines(out, &lines, ("pods", "MiB"));
}

fn medians(rounds: &Rounds) -> Vec<Bar> {
    let bar = |label: &str, class, seconds: Vec<f64>| {
        let to = median(&seconds) * 1e3;
        Bar {
            label: label.to_owned(),
            from: 0.0,
            to,
            class,
            text: format!("{to:.0} ms"),
        }
    };
    let mut bars = vec![
        bar("nacre", "n", rounds.each(|round| round.nacre)),
        bar("runc", "p", rounds.each(|round| round.runc)),
        bar("floor", "f", rounds.each(|round| round.floor)),
    ];
    bars.extend(
        rounds
            .cold()
            .map(|seconds| bar("nacre, templates off", "n", seconds)),
    );
    bars.extend(rounds.other().map(|seconds| bar("other build", "o", seconds)));
    let further = rounds.further().into_iter();
    bars.extend(further.map(|(name, seconds)| bar(name, "p", seconds)));
    bars
}

fn each_round(ratios: &[f64]) -> Vec<Bar> {
    let bar = |(index, ratio): (usize, &f64)| Bar {
        label: format!("round {}", index + 1),
        from: 0.0,
        to: *ratio,
        class: "n",
        text: format!("{ratio:.2}"),
    };
    ratios.iter().enumerate().map(bar).collect()
}

fn steps(timelines: &Timelines, class: &'static str) -> Vec<Bar> {
    let bar = |(name, done, took): (String, f64, f64)| Bar {
        label: name,
        from: (done - took).max(0.0),
        to: done,
        class,
        text: format!("{took:.1} ms"),
    };
    timelines.steps().into_iter().map(bar).collect()
}

fn exits(starts: &Starts) -> Vec<Bar> {
    let bar = |(kind, count): (String, f64)| Bar {
        label: kind,
        from: 0.0,
        to: count,
        class: "n",
        text: number(count),
    };
    starts.booted().exits().into_iter().map(bar).collect()
}

fn section(out: &mut String, title: &str, words: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(out, "<h2>{}</h2>\n<p>{}</p>", escape(title), escape(words));
}

fn table(out: &mut String, results: &Results) {
    out.push_str(
        "<h2>All numbers</h2>\n<table><tr><th>row<th>nacre<th>peer<th>ratio<th>other build<th>ratio<th>\n",
    );
    for measure in &results.0 {
        let figure = |figure: Option<f64>| figure.map(number).unwrap_or_default();
        let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td>{}<td class=\"r\">{} {}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}<td class=\"r\">{}<td>{}",
            escape(&measure.name),
            number(measure.nacre),
            measure.unit,
            figure(measure.peer),
            ratio(measure.ratio),
            figure(measure.other),
            ratio(measure.other_ratio),
            escape(&measure.note)
        );
    }
    out.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Measure;

    #[test]
    fn a_page_has_what_was_measured() {
        let mut results = Results::default();
        results.add(Measure::alone("a <b> & c", "MiB", 1.0, ""));
        let page = html(&results, &Plotted::default());
        assert!(
            page.contains("a &lt;b&gt; &amp; c") && !page.contains("<svg"),
            "{page}"
        );
        let growth = Growth {
            name: "nacre",
            points: vec![(0.0, 0.0), (1.0, 80.0), (11.0, 330.0)],
        };
        let plotted = Plotted {
            growths: vec![growth],
            ..Plotted::default()
        };
        let page = html(&results, &plotted);
        assert!(
            page.contains("nacre: 25.0 MiB each") && page.contains("class=\"l n\""),
            "{page}"
        );
    }
}
