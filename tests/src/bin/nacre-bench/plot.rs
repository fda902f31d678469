//! Plots in SVG: bars, and lines over a number. Pure.

use std::fmt::Write as _;

use crate::results::number;

/// The width of all plots, in the plot's own unit.
const WIDTH: f64 = 860.0;
/// Where bars begin; their labels end left of it.
const LABEL: f64 = 290.0;
/// The height of a bar with its gap.
const ROW: f64 = 24.0;
/// The height of a plot of lines.
const HEIGHT: f64 = 300.0;
/// Room for the labels of the axes, and for those of lines at their ends.
const AXIS: f64 = 60.0;
const ENDS: f64 = 190.0;

/// The style of all plots: the colours of nacre, the peer, the floor and the other build.
pub const STYLE: &str = "text{font:13px system-ui,sans-serif}\
.n{fill:#2a78a8}.p{fill:#c9a24a}.f{fill:#a0a0a0}.o{fill:#6a9a5a}.t{fill:#777}\
.a{fill:none;stroke:#999}.l{fill:none;stroke-width:2}.l.n{stroke:#2a78a8}.l.p{stroke:#c9a24a}\
.l.f{stroke:#a0a0a0}.l.o{stroke:#6a9a5a}";

/// A bar from `from` to `to`, in the plot's unit.
pub struct Bar {
    /// What it is, left of it.
    pub label: String,
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// The class of the page's style that colours it.
    pub class: &'static str,
    /// Its value, right of it.
    pub text: String,
}

/// Points that are joined by a line, in the order of x.
pub struct Line {
    /// What it is, at its end.
    pub label: String,
    /// Pairs of x and y, neither negative.
    pub points: Vec<(f64, f64)>,
    /// The class of the page's style that colours it.
    pub class: &'static str,
}

/// Bars below each other, to one scale from 0.
pub fn bars(out: &mut String, bars: &[Bar]) {
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

/// Lines in one plot, both axes from 0 and each named by its unit.
pub fn lines(out: &mut String, lines: &[Line], (x_unit, y_unit): (&str, &str)) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    let bottom = HEIGHT - 30.0;
    let at = |&(x, y): &(f64, f64)| {
        let across = (WIDTH - AXIS - ENDS) * x / most_x;
        (AXIS + across, bottom - (bottom - 20.0) * y.max(0.0) / most_y)
    };
    let (left, right, top) = (AXIS, WIDTH - ENDS, 20.0);
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <path class=\"a\" d=\"M{left} {top}V{bottom}H{right}\"/>\
         <text class=\"t\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <text class=\"t\" x=\"{right}\" y=\"{}\" text-anchor=\"end\">{} {}</text>\
         <text class=\"t\" x=\"{left}\" y=\"14\">{}</text>",
        left - 6.0,
        top + 4.5,
        number(most_y.round()),
        bottom + 18.0,
        number(most_x),
        escape(x_unit),
        escape(y_unit)
    );
    for line in lines {
        let places: Vec<(f64, f64)> = line.points.iter().map(at).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (x, y) = places.last().copied().unwrap_or((left, bottom));
        let _ = writeln!(
            out,
            "<polyline class=\"l {}\" points=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            line.class,
            path.join(" "),
            x + 8.0,
            y + 4.5,
            escape(&line.label)
        );
    }
    out.push_str("</svg>\n");
}

/// A plot as a file of its own: what `draw` adds, with the style that a page has for all its plots.
pub fn file(draw: impl FnOnce(&mut String)) -> String {
    let mut svg = String::new();
    draw(&mut svg);
    // A viewer may have a dark background.
    let style = format!("<style>svg{{background:#fff}}{STYLE}</style>");
    let svg = svg.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1);
    svg.replacen('>', &format!(">{style}"), 1)
}

/// `text` with the characters that HTML and SVG reserve replaced.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_on_the_page_and_text_is_escaped() {
        let mut out = String::new();
        let bar = |to| Bar {
            label: "x<y".to_owned(),
            from: 0.0,
            to,
            class: "n",
            text: String::new(),
        };
        bars(&mut out, &[bar(1.0), bar(1e9)]);
        assert!(out.contains("x&lt;y") && !out.contains("NaN"), "{out}");
        let widest = format!("width=\"{:.1}\"", WIDTH - LABEL - 90.0);
        assert!(out.contains(&widest), "{out}");
    }

    #[test]
    fn a_file_has_its_name_space_and_style_once() {
        let text = file(|out| lines(out, &[], ("pods", "MiB")));
        assert!(
            text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 300\""),
            "{text}"
        );
        assert_eq!(text.matches("<style>").count(), 1, "{text}");
        assert!(text.find("<style>") < text.find("<path"), "{text}");
    }

    #[test]
    fn lines_begin_at_the_axes_and_end_at_the_largest_point() {
        let line = |label: &str, most: f64| Line {
            label: label.to_owned(),
            points: vec![(0.0, 0.0), (50.0, most)],
            class: "n",
        };
        let mut out = String::new();
        lines(
            &mut out,
            &[line("a&b", 600.0), line("runc", -1.0)],
            ("pods", "MiB"),
        );
        assert!(out.contains("points=\"60.0,270.0 670.0,20.0\""), "{out}");
        // Less than nothing is measured if the host frees memory meanwhile.
        assert!(out.contains("points=\"60.0,270.0 670.0,270.0\""), "{out}");
        assert!(out.contains("a&amp;b") && out.contains("50 pods") && out.contains(">600<"));
        let mut empty = String::new();
        lines(&mut empty, &[], ("pods", "MiB"));
        assert!(!empty.contains("NaN"), "{empty}");
    }
}
