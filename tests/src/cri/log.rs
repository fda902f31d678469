//! A container's log, in the format that kubelet reads: `TIME STREAM TAG TEXT`, where the tag P says that the
//! line goes on in the next entry of the stream and F that it ends.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// An entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line ends with this entry.
    pub full: bool,
    /// The text, without a line feed.
    pub text: String,
}

/// Reads the log at `path`.
///
/// # Errors
/// If it can't be read or an entry is malformed.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    String::from_utf8_lossy(&bytes).lines().map(parse).collect()
}

/// What one stream of a container printed.
pub fn text(lines: &[Line], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if line.full {
            text.push('\n');
        }
    }
    text
}

fn parse(line: &str) -> Result<Line> {
    let mut words = line.splitn(4, ' ');
    let mut word = || {
        words
            .next()
            .with_context(|| format!("an entry is cut off: {line:?}"))
    };
    let (time, stream, tag) = (word()?, word()?, word()?);
    let text = word().unwrap_or_default();
    let is_time = time.len() >= 20 && time.as_bytes().get(10) == Some(&b'T');
    ensure!(is_time, "an entry does not begin with a time: {line:?}");
    ensure!(matches!(stream, "stdout" | "stderr"), "no stream: {line:?}");
    ensure!(matches!(tag, "F" | "P"), "no tag: {line:?}");
    Ok(Line {
        stream: stream.to_owned(),
        full: tag == "F",
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_joined_to_lines() {
        let time = "2026-11-25T22:18:23.717596648Z";
        let log: Result<Vec<Line>> = [
            format!("{time} stdout P a b"),
            format!("{time} stderr F "),
            format!("{time} stdout F  c"),
        ]
        .iter()
        .map(|line| parse(line))
        .collect();
        let log = log.unwrap();
        assert_eq!(text(&log, "stdout"), "a b c\n");
        assert_eq!(text(&log, "stderr"), "\n");
        for wrong in [
            "",
            "x stdout F a",
            &format!("{time} stdin F a"),
            &format!("{time} stdout X a"),
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
