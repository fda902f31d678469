//! The kernel command line: parameters that every VM needs, each with its reason, then those of the operator.
//! Pure; called by the machine's steps.

use crate::config::{Config, ConsoleOutput};
use crate::layout;

/// Why the command line can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The line has this many bytes. The kernel would truncate it.
    #[error("{0} bytes exceed the kernel's limit of {max}", max = layout::COMMAND_LINE_BYTES - 1)]
    TooLong(usize),
}

/// Parameters of every guest.
const ALWAYS: &[&str] = &[
    // Skip the search for quirks of chipsets by the configuration ports: two exits for each of 32 slots.
    "pci=noearly",
    // Reset at once after a panic, which pvpanic has reported by then.
    "panic=-1",
    // Reset by the ACPI register. Without this, Linux resets a hardware-reduced machine by EFI.
    "reboot=acpi",
    // Skip the test of the PIT's interrupt; there is no PIT.
    "no_timer_check",
    // Keep lock prefixes. For a single CPU Linux would patch thousands of them out, each with a switch of
    // address spaces, and the agent may bring more CPUs online later.
    "noreplace-smp",
    // No bounce buffers. With RAM above 4 GiB, Linux would reserve 64 MiB for devices that can't reach it,
    // and write zeros there; virtio devices reach all memory.
    "swiotlb=noforce",
    // Make three quarters of the memory that is plugged in movable, so that it can be unplugged again. All of
    // it would be too much: page tables, inodes and sockets need the other kind.
    "memory_hotplug.online_policy=auto-movable",
    // Credit RDRAND, so that the random number generator is ready at once, as the host's seed does, too.
    "random.trust_cpu=on",
];

/// Composes the command line for `config`. The operator's parameters come last: for most, Linux uses the last
/// value.
///
/// # Errors
/// [`Error::TooLong`] if it exceeds [`layout::COMMAND_LINE_BYTES`].
pub fn compose(config: &Config) -> Result<String, Error> {
    let mut parameters: Vec<&str> = ALWAYS.to_vec();
    let hashes = hash_tables(config.memory_mib);
    parameters.extend(hashes.iter().map(String::as_str));
    match config.console {
        // Each byte on the serial console costs an exit, so only errors are printed.
        ConsoleOutput::RingOnly | ConsoleOutput::QuietStderr => {
            parameters.extend(["console=ttyS0", "quiet", "loglevel=4"]);
        }
        ConsoleOutput::Stderr | ConsoleOutput::Terminal => parameters.push("console=ttyS0"),
    }
    // The other vCPUs are present but offline, until the guest writes 1 to
    // /sys/devices/system/cpu/cpuN/online.
    let online = (config.vcpus < config.max_vcpus).then(|| format!("maxcpus={}", config.vcpus));
    parameters.extend(online.as_deref());
    parameters.extend(
        config
            .extra_cmdline
            .split(' ')
            .filter(|parameter| !parameter.is_empty()),
    );
    let line = parameters.join(" ");
    if line.len() >= layout::COMMAND_LINE_BYTES {
        return Err(Error::TooLong(line.len()));
    }
    Ok(line)
}

/// A quarter of the buckets that Linux would give its caches of directory entries and inodes, one for each 8 and 16 KiB of
/// memory. Each entry is in a random page of its table, so a pod that continues from a template has most of these
/// pages as its own: 768 KiB of 512 MiB, 192 KiB with these.
fn hash_tables(memory_mib: u32) -> [String; 2] {
    let dentries = memory_mib.saturating_mul(32);
    [
        format!("dhash_entries={dentries}"),
        format!("ihash_entries={}", dentries / 2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        Config {
            pod: String::new(),
            memory_mib: 1,
            vcpus: 1,
            max_vcpus: 1,
            extra_cmdline: extra.to_owned(),
            console: ConsoleOutput::RingOnly,
            can_be_saved: false,
        }
    }

    #[test]
    fn the_operators_parameters_come_last() {
        let line = compose(&config(" loglevel=7   nacre.x=1 ")).unwrap();
        assert!(line.ends_with(" loglevel=4 loglevel=7 nacre.x=1"), "{line}");
    }

    #[test]
    fn the_kernel_is_quiet_unless_the_console_is_forwarded() {
        assert!(compose(&config("")).unwrap().contains("quiet"));
        let with = |console| {
            compose(&Config {
                console,
                ..config("")
            })
        };
        assert!(!with(ConsoleOutput::Stderr).unwrap().contains("quiet"));
        assert_eq!(with(ConsoleOutput::QuietStderr), compose(&config("")));
    }

    #[test]
    fn only_a_vm_with_more_vcpus_than_are_online_at_boot_limits_them() {
        assert!(!compose(&config("")).unwrap().contains("maxcpus"));
        let more = Config {
            vcpus: 2,
            max_vcpus: 8,
            ..config("")
        };
        assert!(compose(&more).unwrap().contains(" maxcpus=2"));
    }

    #[test]
    fn hash_tables_grow_with_memory() {
        let with = |memory_mib| {
            compose(&Config {
                memory_mib,
                ..config("")
            })
        };
        assert!(
            with(512)
                .unwrap()
                .contains(" dhash_entries=16384 ihash_entries=8192 ")
        );
        assert!(with(u32::MAX).unwrap().contains("dhash_entries=4294967295"));
    }

    #[test]
    fn a_line_over_the_limit_is_refused() {
        let error = compose(&config(&"x".repeat(layout::COMMAND_LINE_BYTES))).unwrap_err();
        assert!(error.to_string().contains("2047"), "{error}");
    }
}
