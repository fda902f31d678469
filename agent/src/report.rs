//! Writes error lines to the guest's console. Called for errors that end the agent, by the
//! panic hook, and for errors that no caller can receive; never for a request that failed, whose error goes
//! into the reply.
//!
//! PID 1 must not abort: the kernel does not deliver SIGABRT to it, and the process would fault for ever. The
//! panic hook exits instead. The kernel then panics because init exited, and the host finds the reason on the
//! console.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Longest line written, bytes: the kernel refuses a write of more than 1 KiB to /dev/kmsg.
const MAX_LINE: usize = 900;
/// Exit status of the agent after a fatal error or a panic.
pub const FAILED: i32 = 101;

/// Writes one line to /dev/kmsg at level 2 (critical), which the guest's kernel prints on the console; to
/// standard error if /dev/kmsg can't be written. Control characters become spaces.
pub fn to_console(text: &str) {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_LINE)
        .collect();
    line.truncate(line.floor_char_boundary(MAX_LINE));
    let record = format!("<2>nacre-agent: {line}\n");
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg");
    if kmsg.and_then(|mut log| log.write_all(record.as_bytes())).is_err() {
        // There is no other place to report to if this fails, too.
        let _ = writeln!(std::io::stderr(), "nacre-agent: {line}");
    }
}

/// Replaces the panic hook by one that writes the panic to the console and exits with [`FAILED`].
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        to_console(&panic.to_string());
        std::process::exit(FAILED);
    }));
}
