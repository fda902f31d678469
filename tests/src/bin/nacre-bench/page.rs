//! The page with plots: bars in SVG and a table, in one HTML file that needs no network. Pure.

use std::fmt::Write as _;

use crate::results::{Results, number};
use crate::rounds::Rounds;
use crate::start::Starts;
use crate::statistics::{median, percentile};

const WIDTH: f64 = 860.0;
const LABEL: f64 = 290.0;
const ROW: f64 = 24.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}svg{width:100%;height:auto}text{font:13px system-ui,sans-serif}\
.n{fill:#2a78a8}.p{fill:#c9a24a}.f{fill:#a0a0a0}.o{fill:#6a9a5a}.t{fill:#777}table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:left;\
border-bottom:1px solid #ddd}td.r{text-align:right;font-variant-numeric:tabular-nums}";

/// A bar from `from` to `to`, in the plot's unit.
struct Bar {
    label: String,
    from: f64,
    to: f64,
    class: &'static str,
    text: String,
}

/// The whole page.
pub fn html(results: &Results, measured: &[Rounds], starts: &Starts) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Nacre beside runc</title><style>{STYLE}</style>\n\
         <h1>Nacre beside runc</h1>\n"
    );
    for rounds in measured {
        let ratios = rounds.ratios();
        section(
            &mut out,
            rounds.command,
            &format!(
                "Medians of {} rounds in which the runtimes take turns. Median of the rounds' ratios of nacre to runc: {:.2} \
                 (p10 to p90: {:.2} to {:.2}). The floor is a shim that does nothing: what ctr and containerd take \
                 themselves. Above the floor the ratio is {:.2}. Times under emulation mean something only as ratios.",
                rounds.rounds.len(),
                median(&ratios),
                percentile(&ratios, 10.0),
                percentile(&ratios, 90.0),
                rounds.ratio_above_floor()
            ),
            &medians(rounds),
        );
        section(
            &mut out,
            &format!("{}: ratio of each round", rounds.command),
            "Nacre's time divided by runc's.",
            &each_round(&ratios),
        );
    }
    section(
        &mut out,
        "Steps of a start",
        "Medians, milliseconds since containerd executed the shim.",
        &steps(starts),
    );
    section(
        &mut out,
        "VM exits during boot",
        "Medians, from the guest's first instruction until its agent is ready.",
        &exits(starts),
    );
    table(&mut out, results);
    out.push_str("</html>\n");
    out
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
    bars.extend(rounds.other().map(|seconds| bar("other build", "o", seconds)));
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

fn steps(starts: &Starts) -> Vec<Bar> {
    let bar = |(name, done, took): (String, f64, f64)| Bar {
        label: name,
        from: (done - took).max(0.0),
        to: done,
        class: "n",
        text: format!("{took:.1} ms"),
    };
    starts.nacre.steps().into_iter().map(bar).collect()
}

fn exits(starts: &Starts) -> Vec<Bar> {
    let bar = |(kind, count): (String, f64)| Bar {
        label: kind,
        from: 0.0,
        to: count,
        class: "n",
        text: number(count),
    };
    starts.nacre.exits().into_iter().map(bar).collect()
}

fn section(out: &mut String, title: &str, words: &str, bars: &[Bar]) {
    // Writing to a String can't fail.
    let _ = writeln!(out, "<h2>{}</h2>\n<p>{}</p>", escape(title), escape(words));
    plot(out, bars);
}

fn plot(out: &mut String, bars: &[Bar]) {
    let most = bars.iter().map(|bar| bar.to).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABEL - 90.0) / most;
    let height = ROW * bars.len() as f64;
    let _ = writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (index, bar) in bars.iter().enumerate() {
        let middle = ROW * index as f64 + ROW / 2.0;
        let (start, end) = (LABEL + bar.from * scale, LABEL + bar.to * scale);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{}\" x=\"{start:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\"/>\
             <text class=\"t\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LABEL - 8.0,
            middle + 4.5,
            escape(&bar.label),
            bar.class,
            middle - 8.0,
            (end - start).max(1.0),
            end + 6.0,
            middle + 4.5,
            escape(&bar.text)
        );
    }
    out.push_str("</svg>\n");
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Measure;

    #[test]
    fn bars_stay_on_the_page_and_text_is_escaped() {
        let mut results = Results::default();
        results.add(Measure::alone("a <b> & c", "MiB", 1.0, ""));
        let mut out = String::new();
        let bar = |to| Bar {
            label: "x<y".to_owned(),
            from: 0.0,
            to,
            class: "n",
            text: String::new(),
        };
        plot(&mut out, &[bar(1.0), bar(1e9)]);
        table(&mut out, &results);
        assert!(
            out.contains("x&lt;y") && out.contains("a &lt;b&gt; &amp; c") && !out.contains("NaN"),
            "{out}"
        );
        let widest = format!("width=\"{:.1}\"", WIDTH - LABEL - 90.0);
        assert!(out.contains(&widest), "{out}");
    }
}
