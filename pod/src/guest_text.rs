//! Texts that a guest or its VMM chose, made fit for state files, error messages and logs: short, on one
//! line, without control characters. Called where such a text arrives. Pure.

/// Longest name: of a step, a kernel release, a build.
pub const MAX_NAME: usize = 128;
/// Longest message: of an error, with its causes.
pub const MAX_MESSAGE: usize = 4096;

/// `text` with control characters escaped, as `\u{1b}`, and cut to at most `max` bytes; "…" at the end marks
/// a cut.
#[must_use]
pub fn bounded(text: &str, max: usize) -> String {
    const MARK: &str = "…";
    let mut bounded = String::new();
    // The end of the last character that leaves room for the mark.
    let mut cut_at = 0;
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            bounded.extend(c.escape_default());
        } else {
            bounded.push(c);
        }
        if bounded.len() > max {
            bounded.truncate(cut_at);
            bounded.push_str(MARK);
            return bounded;
        }
        if bounded.len() + MARK.len() <= max {
            cut_at = bounded.len();
        }
    }
    bounded
}

/// Unicode's bidirectional controls, zero-width characters and line separators: with them a terminal shows
/// something else than the text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_plain_text_stays() {
        for text in ["", "6.1.0-nacre", "gr\u{fc}n \u{1f980}"] {
            assert_eq!(bounded(text, 32), text);
        }
        assert_eq!(bounded("abcdef", 6), "abcdef");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(bounded("a\x1b[31m\r\nb\0", 64), r"a\u{1b}[31m\r\nb\u{0}");
        assert_eq!(bounded("a\u{202e}b\u{9b}c", 64), r"a\u{202e}b\u{9b}c");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(bounded("abcdefg", 6), "abc…");
        assert_eq!(bounded("ab\x1bdefg", 6), "ab…");
        assert_eq!(bounded(&"\u{fc}".repeat(10), 6), "\u{fc}…");
        for max in 0..40 {
            for text in ["x".repeat(50), "\u{1f980}".repeat(20), "\x1b".repeat(20)] {
                let cut = bounded(&text, max);
                assert!(cut.ends_with('…') && cut.len() <= max.max(3), "{max}: {cut}");
            }
        }
        assert!(bounded(&"\n".repeat(3 << 20), MAX_MESSAGE).len() <= MAX_MESSAGE);
    }
}
