//! How things look on a terminal: tables, bars, units. Pure, except [`print()`].

use std::io::Write as _;

/// Prints `text`; a reader that has gone away (`| head`) is no error.
///
/// # Errors
/// Where standard output can't be written.
pub fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// `rows` in columns as wide as their longest cell, two spaces apart.
pub fn columns(rows: &[Vec<String>]) -> String {
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

/// `text` with control characters escaped: some of it comes from guests.
pub fn clean(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

/// Bytes in the unit that gives one to four digits before the point.
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

/// Seconds in the largest unit that fits.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A stretch from `from` to `to` of a line that stands for 0..`whole`, in `width` cells; at least a sliver.
pub fn stretch(from: u64, to: u64, whole: u64, width: usize) -> String {
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
    fn columns_line_up() {
        let rows = [
            vec!["ID".to_owned(), "STATE".to_owned()],
            vec!["longer".to_owned(), "x".to_owned()],
        ];
        assert_eq!(columns(&rows), "ID      STATE\nlonger  x\n");
    }

    #[test]
    fn units() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(34 * 1024 * 1024 + 512 * 1024), "34.5 MiB");
        assert_eq!(age(59), "59 s");
        assert_eq!(age(7199), "119 min");
        assert_eq!(age(200_000), "2 d");
    }

    #[test]
    fn stretches_keep_to_their_width() {
        assert_eq!(stretch(0, 100, 100, 4), "████");
        assert_eq!(stretch(50, 100, 100, 4), "  ██");
        assert_eq!(stretch(100, 100, 100, 4), "   █");
        assert_eq!(stretch(0, 0, 100, 4), "▏");
        assert_eq!(stretch(0, 0, 0, 4), "▏");
        for from in 0..=100 {
            assert!(stretch(from, 100, 100, 10).chars().count() <= 10);
        }
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
