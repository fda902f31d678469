//! The page with plots: bars in SVG, written by hand, readable without a network. Pure.

use std::fmt::Write as _;

use crate::pairs::Pairs;
use crate::results::{Results, number};
use crate::start::Starts;
use crate::statistics::{median, percentile};

const WIDTH: f64 = 860.0;
const LABEL: f64 = 290.0;
const ROW: f64 = 24.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}svg{width:100%;height:auto}text{font:13px system-ui,sans-serif}\
.n{fill:#2a78a8}.p{fill:#c9a24a}.t{fill:#777}table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:left;\
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
pub fn html(results: &Results, pairs: &[Pairs], starts: &Starts) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Nacre beside runc</title><style>{STYLE}</style>\n\
         <h1>Nacre beside runc</h1>\n"
    );
    for measured in pairs {
        let ratios = measured.ratios();
        section(
            &mut out,
            measured.command,
            &format!(
                "Median of {} alternating pairs. Median of the pairs' ratios: {:.2} (p10 to p90: {:.2} to {:.2}). \
                 Times under emulation mean something only as ratios.",
                measured.times.len(),
                median(&ratios),
                percentile(&ratios, 10.0),
                percentile(&ratios, 90.0)
            ),
            &medians(measured),
        );
        section(
            &mut out,
            &format!("{}: ratio of each pair", measured.command),
            "Nacre's time to runc's.",
            &each_pair(&ratios),
        );
    }
    section(
        &mut out,
        "Where a start goes",
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

fn medians(pairs: &Pairs) -> Vec<Bar> {
    let bar = |label: &str, class, times: Vec<f64>| {
        let to = median(&times);
        Bar {
            label: label.to_owned(),
            from: 0.0,
            to,
            class,
            text: format!("{to:.0} ms"),
        }
    };
    vec![
        bar(
            "nacre",
            "n",
            pairs.times.iter().map(|pair| pair.0 * 1e3).collect(),
        ),
        bar("runc", "p", pairs.times.iter().map(|pair| pair.1 * 1e3).collect()),
    ]
}

fn each_pair(ratios: &[f64]) -> Vec<Bar> {
    let bar = |(index, ratio): (usize, &f64)| Bar {
        label: format!("pair {}", index + 1),
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
    starts.steps().into_iter().map(bar).collect()
}

fn exits(starts: &Starts) -> Vec<Bar> {
    let bar = |(kind, count): (String, f64)| Bar {
        label: kind,
        from: 0.0,
        to: count,
        class: "n",
        text: number(count),
    };
    starts.exits().into_iter().map(bar).collect()
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
    out.push_str("<h2>All numbers</h2>\n<table><tr><th>what<th>nacre<th>peer<th>ratio<th>\n");
    for measure in &results.0 {
        let peer = measure.peer.map(number).unwrap_or_default();
        let ratio = measure
            .ratio
            .map(|ratio| format!("{ratio:.2}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td>{}<td class=\"r\">{} {}<td class=\"r\">{peer}<td class=\"r\">{ratio}<td>{}",
            escape(&measure.name),
            number(measure.nacre),
            measure.unit,
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
