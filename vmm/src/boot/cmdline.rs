//! The kernel command line: what this machine needs, then what the operator adds. Each word has its reason here.

use crate::config::{Config, ConsoleTo};
use crate::machine::layout;

/// Why there is no command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel cuts what is longer.
    #[error("{0} bytes; the kernel takes {max}", max = layout::COMMAND_LINE_BYTES - 1)]
    TooLong(usize),
}

/// Words for every guest.
const ALWAYS: &[&str] = &[
    // PCI is there only because ACPICA wants its region handler: take its ports for good, scan nothing.
    "pci=conf1,noearly",
    // A panic is reported by pvpanic; then reset at once instead of hanging.
    "panic=-1",
    // By the ACPI register: a kernel with EFI takes a hardware-reduced machine for one that resets by EFI.
    "reboot=acpi",
    // There is no PIT and no PIC: don't test how the timer's interrupt is wired.
    "no_timer_check",
    // Leave the lock prefixes: patching them out for one CPU writes thousands of instructions, each in an address space
    // made for it, and the agent may online more CPUs later.
    "noreplace-smp",
    // Seed the random pool from RDRAND at once; virtio-rng adds the host's entropy.
    "random.trust_cpu=on",
];

/// Composes the command line for `config`.
///
/// # Errors
/// [`Error::TooLong`] with its length.
pub fn compose(config: &Config) -> Result<String, Error> {
    let mut words: Vec<&str> = ALWAYS.to_vec();
    match config.console {
        // Every byte on the serial console is an exit: only what went wrong is worth it.
        ConsoleTo::Ring => words.extend(["console=ttyS0", "quiet", "loglevel=4"]),
        ConsoleTo::Stderr | ConsoleTo::Terminal => words.push("console=ttyS0"),
    }
    words.extend(config.extra_cmdline.split(' ').filter(|word| !word.is_empty()));
    let line = words.join(" ");
    if line.len() >= layout::COMMAND_LINE_BYTES {
        return Err(Error::TooLong(line.len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        Config {
            pod: String::new(),
            memory_mib: 1,
            vcpus: 1,
            extra_cmdline: extra.to_owned(),
            console: ConsoleTo::Ring,
        }
    }

    #[test]
    fn the_operators_words_come_last_so_that_they_win() {
        let line = compose(&config(" loglevel=7   nacre.x=1 ")).unwrap();
        assert!(line.ends_with(" loglevel=4 loglevel=7 nacre.x=1"), "{line}");
    }

    #[test]
    fn is_quiet_unless_somebody_reads_the_console() {
        assert!(compose(&config("")).unwrap().contains("quiet"));
        let loud = Config {
            console: ConsoleTo::Stderr,
            ..config("")
        };
        assert!(!compose(&loud).unwrap().contains("quiet"));
    }

    #[test]
    fn too_long_a_line_is_refused_not_cut() {
        let error = compose(&config(&"x".repeat(layout::COMMAND_LINE_BYTES))).unwrap_err();
        assert!(error.to_string().contains("2047"), "{error}");
    }
}
