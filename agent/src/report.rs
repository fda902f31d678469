//! The agent's last words: a line on the guest's console. Called where the agent can't go on, and by the panic hook;
//! never in the ordinary course of a container's life.
//!
//! A process with pid 1 must not abort: the kernel keeps the signal from it and the process faults for ever. It ends
//! by exiting, whereupon the kernel panics and the host sees that, with the reason on the console.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Longest line written, bytes; the kernel's log has 1 KiB a record.
const MAX_LINE: usize = 900;
/// Exit status of an agent that can't go on.
pub const FAILED: i32 = 101;

/// Writes a line to the kernel's log, at a level that reaches the console, or else to standard error.
pub fn say(text: &str) {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_LINE)
        .collect();
    let record = format!("<2>nacre-agent: {line}\n");
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg");
    if kmsg.and_then(|mut log| log.write_all(record.as_bytes())).is_err() {
        // Nobody is left to tell where this fails too.
        let _ = writeln!(std::io::stderr(), "nacre-agent: {line}");
    }
}

/// Makes a panic a line on the console and an exit.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        say(&panic.to_string());
        std::process::exit(FAILED);
    }));
}
