//! Formats output for a terminal: tables, bars, units, text from untrusted sources. Does no I/O except in
//! [`print()`].

use std::io::Write as _;

use nacre_protocol::text;

/// Longest text that is shown, bytes. An error with its causes fits; a guest or a VMM may have written
/// more.
const MAX_TEXT: usize = 1000;

/// Writes `text` to standard output. A closed pipe (`| head`) is not an error.
///
/// # Errors
/// If standard output can't be written.
pub fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Formats `rows` as a table: cells are made [`printable`], columns are as wide as their longest cell, and
/// two spaces separate them.
pub fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let line: String = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Makes a text from a guest, a VMM or a file safe to show on a terminal ([`text::printable`]), in at most
/// [`MAX_TEXT`] bytes.
pub fn printable(text: &str) -> String {
    text::printable(text, MAX_TEXT)
}

/// A number of bytes in the largest binary unit in which it is at least 1.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A size of memory in MiB, as [`bytes`] shows it.
pub fn mib(count: u32) -> String {
    bytes(u64::from(count) << 20)
}

/// A duration in seconds, minutes, hours or days, rounded down; at least 2 of the unit except for seconds.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A bar for the range `from..to` on a line of `width` cells that stands for 0..`whole`. It has at least one
/// eighth of a cell.
pub fn bar(from: u64, to: u64, whole: u64, width: usize) -> String {
    let eighths = |at: u64| {
        let scaled = u128::from(at.min(whole)) * width as u128 * 8 / u128::from(whole.max(1));
        usize::try_from(scaled).unwrap_or(0)
    };
    let start = (eighths(from) / 8).min(width.saturating_sub(1));
    let length = eighths(to).saturating_sub(start * 8).max(1);
    let partial = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let tail = partial.get(length % 8).copied().unwrap_or_default();
    format!("{}{}{tail}", " ".repeat(start), "█".repeat(length / 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_table_line_up() {
        let rows = [
            vec!["ID".to_owned(), "STATE".to_owned()],
            vec!["longer".to_owned(), "x".to_owned()],
            vec!["\u{7}".to_owned(), "y".to_owned()],
        ];
        assert_eq!(
            table(&rows),
            "ID      STATE\nlonger  x\n\\u{7}   y\n",
            "the width is that of the escaped text"
        );
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(34 * 1024 * 1024 + 512 * 1024), "34.5 MiB");
        assert_eq!(age(59), "59 s");
        assert_eq!(age(7199), "119 min");
        assert_eq!(age(200_000), "2 d");
    }

    #[test]
    fn bars_never_exceed_their_width() {
        assert_eq!(bar(0, 100, 100, 4), "████");
        assert_eq!(bar(50, 100, 100, 4), "  ██");
        assert_eq!(bar(100, 100, 100, 4), "   █");
        assert_eq!(bar(0, 0, 100, 4), "▏");
        assert_eq!(bar(0, 0, 0, 4), "▏");
        for from in 0..=100 {
            assert!(bar(from, 100, 100, 10).chars().count() <= 10);
        }
    }
}
