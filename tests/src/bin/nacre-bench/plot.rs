//! Plots in SVG. Pure.

use std::fmt::Write as _;

/// The width of all plots, in the plot's own unit.
const WIDTH: f64 = 860.0;
/// Where bars begin; their labels end left of it.
const LABEL: f64 = 290.0;
/// The height of a bar with its gap.
const ROW: f64 = 24.0;

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
}
