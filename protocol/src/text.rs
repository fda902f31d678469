//! Text that is not trusted, made safe for a terminal, a log line or a state file. Pure.

/// `text` with control and invisible characters escaped, as `\u{1b}`, and cut to at most `max` bytes; "…" at
/// the end marks a cut.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    const MARK: &str = "…";
    let mut out = String::new();
    // The end of the last character that leaves room for the mark.
    let mut cut_at = 0;
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        if out.len() > max {
            out.truncate(cut_at);
            out.push_str(MARK);
            return out;
        }
        if out.len() + MARK.len() <= max {
            cut_at = out.len();
        }
    }
    out
}

/// Unicode's bidirectional controls, zero-width characters and line separators: with them a terminal shows
/// something else than the text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_plain_text_stays() {
        for text in ["", "6.1.0-nacre", "gr\u{fc}n → ✓ \u{1f980}"] {
            assert_eq!(printable(text, 32), text);
        }
        assert_eq!(printable("abcdef", 6), "abcdef");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\x1b[31m\r\nb\0", 64), r"a\u{1b}[31m\r\nb\u{0}");
        assert_eq!(printable("\u{9b}31m", 64), r"\u{9b}31m", "the one-byte CSI");
        assert_eq!(
            printable("\u{202e}txt", 64),
            r"\u{202e}txt",
            "right-to-left override"
        );
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(printable("abcdefg", 6), "abc…");
        assert_eq!(printable("ab\x1bdefg", 6), "ab…");
        assert_eq!(printable(&"\u{fc}".repeat(10), 6), "\u{fc}…");
        for max in 0..40 {
            for text in ["x".repeat(50), "\u{1f980}".repeat(20), "\x1b".repeat(20)] {
                let cut = printable(&text, max);
                assert!(cut.ends_with('…') && cut.len() <= max.max(3), "{max}: {cut}");
            }
        }
        assert!(printable(&"\n".repeat(3 << 20), 4096).len() <= 4096);
    }
}
