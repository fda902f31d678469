//! The shim's log: lines in the format of containerd's own log on standard error, which in the daemon is the
//! bundle's `log` FIFO. Never blocks: a line that does not fit into the FIFO is dropped, and the next line
//! reports how many were. Each place in the code that logs has a limit of its own ([`limit`]), since a guest
//! can cause any number of some lines.

mod limit;

use std::fmt::Display;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::clock;
pub use limit::CallSite;
use limit::{Admitted, Limits};

static ID: OnceLock<String> = OnceLock::new();
static OUTPUT: OnceLock<OwnedFd> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
static LOGS_DEBUG: AtomicBool = AtomicBool::new(false);
static LIMITS: Mutex<Limits> = Mutex::new(Limits::new());
/// Longest message, characters; a guest may have chosen a part of it.
const MAX_MESSAGE: usize = 4096;
/// Tests in this crate and the fuzzer log nothing.
const SILENT: bool = cfg!(any(test, feature = "fuzzing"));

/// How important a line is, as containerd names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What a developer looks for, or whoever wants to see each call.
    Debug,
    /// An event that an operator may look for.
    Info,
    /// Something failed, and the operation went on.
    Warning,
    /// An operation failed.
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Sets the pod's id, which every later line has.
pub fn set_id(id: &str) {
    // Called once per process; if not, the first id stays.
    let _ = ID.set(id.to_owned());
}

/// Lines go to `output` from now on, instead of standard error: that of `start` is read by containerd as a part of the
/// address.
pub fn send_to(output: OwnedFd) {
    // Called once per process; if not, the first one stays.
    let _ = OUTPUT.set(output);
}

/// Lines of [`Level::Debug`] are logged from now on.
pub fn enable_debug() {
    LOGS_DEBUG.store(true, Ordering::Relaxed);
}

/// Whether lines of [`Level::Debug`] are logged.
pub fn logs_debug() -> bool {
    LOGS_DEBUG.load(Ordering::Relaxed)
}

/// Logs at [`Level::Info`].
#[track_caller]
pub fn info(message: impl Display) {
    log(Level::Info, here(), message);
}

/// Logs at [`Level::Warning`].
#[track_caller]
pub fn warn(message: impl Display) {
    log(Level::Warning, here(), message);
}

/// Logs at [`Level::Error`].
#[track_caller]
pub fn error(message: impl Display) {
    log(Level::Error, here(), message);
}

/// Logs at `level`.
#[track_caller]
pub fn log_at(level: Level, message: impl Display) {
    log(level, here(), message);
}

#[track_caller]
fn here() -> CallSite {
    let caller = Location::caller();
    (caller.file(), caller.line(), caller.column())
}

/// Logs a line of `site`, unless its limit is reached.
pub fn log(level: Level, site: CallSite, message: impl Display) {
    if SILENT || level == Level::Debug && !logs_debug() {
        return;
    }
    let mut limits = LIMITS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(admitted) = limits.admit(site, clock::monotonic_ns()) else {
        return;
    };
    drop(limits);
    write(level, &message.to_string(), admitted);
}

/// Logs a call of containerd and its outcome, at [`Level::Debug`] and without a limit: no guest makes calls.
pub fn call(message: impl Display) {
    if logs_debug() && !SILENT {
        let unlimited = Admitted {
            left_out: 0,
            is_last: false,
        };
        write(Level::Debug, &message.to_string(), unlimited);
    }
}

fn write(level: Level, message: &str, admitted: Admitted) {
    let dropped = DROPPED.swap(0, Ordering::Relaxed);
    let id = ID.get().map_or("", String::as_str);
    let text = format_line(level, message, id) + &notes(admitted, dropped) + "\n";
    let output = OUTPUT
        .get()
        .map_or(rustix::stdio::stderr(), |output| output.as_fd());
    if rustix::io::write(output, text.as_bytes()).is_err() {
        DROPPED.fetch_add(dropped + admitted.left_out + 1, Ordering::Relaxed);
    }
}

/// Fields about lines that are not in the log.
fn notes(admitted: Admitted, dropped: u64) -> String {
    let mut notes = String::new();
    if admitted.left_out > 0 {
        notes += &format!(" left_out={}", admitted.left_out);
    }
    if admitted.is_last {
        notes += " limit=\"more lines like this are left out\"";
    }
    if dropped > 0 {
        notes += &format!(" dropped={dropped}");
    }
    notes
}

fn format_line(level: Level, message: &str, id: &str) -> String {
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    format!(
        "time=\"{}\" level={} msg={message:?} id={id:?} runtime=nacre",
        utc(clock::realtime().as_secs()),
        level.name()
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
        let line = format_line(Level::Info, "a\nb \"c\"", "x");
        assert!(!line.contains('\n'));
        assert!(line.contains(r#"msg="a\nb \"c\"" id="x""#), "{line}");
    }

    #[test]
    fn a_line_reports_those_that_are_missing() {
        let admitted = |left_out, is_last| Admitted { left_out, is_last };
        assert_eq!(notes(admitted(0, false), 0), "");
        assert_eq!(
            notes(admitted(7, true), 3),
            " left_out=7 limit=\"more lines like this are left out\" dropped=3"
        );
    }
}
