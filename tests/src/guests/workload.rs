//! What `nacre-guest-workload` does as PID 1 of a guest: mounts file systems, runs the workload that the
//! kernel command line names, writes its report and ends the guest. Never runs on the host.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use nacre_protocol::guest::{SHARED_TAG, TEMPLATE};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

use super::WORKLOADS;

/// Where the host's shared directory is mounted in the guest.
pub const SHARED: &str = "/shared";
/// The report's file in the shared directory.
pub const REPORT: &str = "report.json";
/// A failure's lines on the console: this and the reason.
pub const FAILED: &str = "workload: failed: ";
/// The parameter with the workload's name.
pub const NAME: &str = "workload";

/// The word of the kernel command line of a VM that has no shared directory. The report is lost.
pub const UNSHARED: &str = "workload.unshared";

/// File systems of the guest: type, source, mount point.
const MOUNTS: [(&str, &str, &str); 3] = [
    ("devtmpfs", "devtmpfs", "/dev"),
    ("proc", "proc", "/proc"),
    ("sysfs", "sysfs", "/sys"),
];

/// The parameters `workload.<key>=<value>` of the kernel command line. The kernel takes them for those of an
/// unknown module, which it ignores.
#[derive(Debug)]
pub struct Parameters(String);

impl Parameters {
    /// The value of `key`.
    ///
    /// # Errors
    /// If it is missing or can't be parsed.
    pub fn get<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self, key: &str) -> Result<T> {
        let prefix = format!("{NAME}.{key}=");
        let value = self.word(&prefix)?;
        value.parse().with_context(|| format!("{prefix}{value}"))
    }

    /// The rest of the word that begins with `prefix`.
    fn word(&self, prefix: &str) -> Result<&str> {
        let found = self
            .0
            .split_whitespace()
            .find_map(|word| word.strip_prefix(prefix));
        found.with_context(|| format!("the kernel command line has no {prefix}"))
    }
}

/// Makes the guest's kernel find PCI devices that were added since its boot.
///
/// # Errors
/// If sysfs has no such file.
pub fn scan_pci_bus() -> Result<()> {
    fs::write("/sys/bus/pci/rescan", "1").context("scanning the PCI bus")
}

/// Mounts the host's shared directory.
///
/// # Errors
/// If the VM has none.
pub fn mount_shared() -> Result<()> {
    mount(SHARED_TAG, SHARED, "virtiofs", MountFlags::empty(), None)
        .with_context(|| format!("mounting the shared directory on {SHARED}"))
}

/// Runs the workload. Returns only if the guest can't be ended; PID 1 then ends, which panics the kernel.
pub fn run_as_init() {
    std::panic::set_hook(Box::new(|panic| print_failure(&panic.to_string())));
    let command = match run() {
        Ok(()) => RebootCommand::PowerOff,
        Err(error) => {
            print_failure(&format!("{error:#}"));
            RebootCommand::Restart
        }
    };
    if let Err(error) = reboot(command) {
        print_failure(&format!("reboot(2): {error}"));
    }
}

/// Prints `line`, of less than 900 bytes, on the console, by the kernel's log: unless the VMM has a terminal for it, the
/// serial port is no tty, and writes to standard output fail.
///
/// # Errors
/// If the kernel does not take it.
pub fn print(line: &str) -> Result<()> {
    let mut log = File::options().write(true).open("/dev/kmsg")?;
    // Level 3 is an error, which is printed in spite of `quiet`. Each message is one write.
    Ok(log.write_all(format!("<3>{line}\n").as_bytes())?)
}

fn print_failure(reason: &str) {
    for line in reason.lines() {
        let _ = print(&format!("{FAILED}{line}"));
    }
}

/// Sets the guest up, runs the workload and writes its report.
fn run() -> Result<()> {
    ensure!(std::process::id() == 1, "this program is /init of a guest");
    for (kind, source, target) in MOUNTS {
        mount(source, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {kind} on {target}"))?;
    }
    let parameters = Parameters(fs::read_to_string("/proc/cmdline")?);
    // A VM that is to be saved must not have mounted it.
    if !parameters
        .0
        .split_whitespace()
        .any(|word| [TEMPLATE, UNSHARED].contains(&word))
    {
        mount_shared()?;
    }
    let name = parameters.word(&format!("{NAME}="))?;
    let Some(workload) = WORKLOADS.iter().find(|workload| workload.name == name) else {
        bail!("there is no workload {name:?}");
    };
    let report = (workload.run)(&parameters)?;
    let file = Path::new(SHARED).join(REPORT);
    fs::write(&file, report.to_string()).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_whole_key() {
        let parameters = Parameters("quiet workload=io workload.count=12 workload.counter=x\n".to_owned());
        assert_eq!(parameters.get::<u32>("count").unwrap(), 12);
        assert_eq!(parameters.get::<String>("counter").unwrap(), "x");
        assert!(parameters.get::<u32>("counter").is_err());
        assert!(parameters.get::<u32>("other").is_err());
        assert_eq!(parameters.word("workload=").unwrap(), "io");
    }

    #[test]
    fn names_of_workloads_are_unique() {
        let mut names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WORKLOADS.len());
    }
}
