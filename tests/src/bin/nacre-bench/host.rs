//! What a run was measured with, in a line.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::containers::output;

/// The day, the CPUs, the kernel, and the versions of what was measured.
///
/// # Errors
/// If one of the programs can't be asked.
pub fn measured() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let version = |program| first_line(Command::new(program).arg("--version"));
    Ok(format!(
        "{}, {cpus} × {}, Linux {}, {}, {}, {}",
        first_line(Command::new("date").args(["-u", "+%F"]))?,
        model(&cpuinfo).context("/proc/cpuinfo has no model name")?,
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        version("nacre-vmm")?,
        short(&version("containerd")?),
        short(&version("runc")?)
    ))
}

fn first_line(command: &mut Command) -> Result<String> {
    Ok(output(command)?.lines().next().unwrap_or_default().to_owned())
}

/// The model of the first CPU.
fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// A program's name and version, of what it prints as its version.
fn short(line: &str) -> String {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let version = words.find(|word| word.contains(|c: char| c.is_ascii_digit()));
    format!("{name} {}", version.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_the_cpu_are_found_in_what_is_printed() {
        let containerd = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u2";
        assert_eq!(short(containerd), "containerd 1.6.20~ds1");
        assert_eq!(short("runc version 1.1.5+ds1"), "runc 1.1.5+ds1");
        assert_eq!(
            model("processor\t: 0\nmodel name\t: QEMU TCG CPU\n"),
            Some("QEMU TCG CPU")
        );
        assert_eq!(model("processor\t: 0\n"), None);
    }
}
