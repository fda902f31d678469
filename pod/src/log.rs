//! The shim's log: lines in the format of containerd's own log on standard error, which in the daemon is the
//! bundle's `log` FIFO. Never blocks: a line that does not fit into the FIFO is dropped, and the next line
//! reports how many were.

use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

static ID: OnceLock<String> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Longest message, characters; a guest may have chosen a part of it.
const MAX_MESSAGE: usize = 4096;

/// Sets the pod's id, which every later line has.
pub fn set_id(id: &str) {
    // Called once per process; if not, the first id stays.
    let _ = ID.set(id.to_owned());
}

/// Logs at level "info": an event that an operator may look for.
pub fn info(message: impl Display) {
    line("info", &message.to_string());
}

/// Logs at level "warning": something failed, and the operation went on.
pub fn warn(message: impl Display) {
    line("warning", &message.to_string());
}

/// Logs at level "error": an operation failed.
pub fn error(message: impl Display) {
    line("error", &message.to_string());
}

fn line(level: &str, message: &str) {
    if cfg!(test) {
        return;
    }
    let dropped = DROPPED.swap(0, Ordering::Relaxed);
    let note = if dropped > 0 {
        format!(" dropped={dropped}")
    } else {
        String::new()
    };
    let text = format_line(level, message, ID.get().map_or("", String::as_str)) + &note + "\n";
    if rustix::io::write(rustix::stdio::stderr(), text.as_bytes()).is_err() {
        DROPPED.fetch_add(dropped + 1, Ordering::Relaxed);
    }
}

fn format_line(level: &str, message: &str, id: &str) -> String {
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    format!(
        "time=\"{}\" level={level} msg={message:?} id={id:?} runtime=nacre",
        utc(clock::realtime().as_secs())
    )
}

/// `seconds` since the epoch in RFC 3339, UTC. The Gregorian calendar repeats every 400 years, 146,097 days;
/// years here begin on 1 March, so that a leap day is the last day of its year.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_in_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(utc(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn a_message_with_line_breaks_stays_one_line() {
        let line = format_line("info", "a\nb \"c\"", "x");
        assert!(!line.contains('\n'));
        assert!(line.contains(r#"msg="a\nb \"c\"" id="x""#), "{line}");
    }
}
