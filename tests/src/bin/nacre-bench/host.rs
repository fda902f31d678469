//! What a run was measured with, in a line.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::containers::output;

/// What is installed of Nacre, below its prefix. The version of a program is that of the protocol between them.
const INSTALLED: [&str; 4] = [
    "bin/containerd-shim-nacre-v2",
    "bin/nacre-vmm",
    "share/nacre/initramfs.cpio",
    "share/nacre/vmlinux",
];

/// The day, the CPUs, the kernel, and the versions of what was measured. That of Nacre, which is installed at `prefix`, has
/// the first 8 digits of the SHA-256 of its files in the order of [`INSTALLED`].
///
/// # Errors
/// If one of the programs can't be asked, or a file can't be read.
pub fn measured(prefix: &Path) -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let version = |program| first_line(Command::new(program).arg("--version"));
    Ok(format!(
        "{}, {cpus} × {}, Linux {}, {} ({}), {}, {}",
        first_line(Command::new("date").args(["-u", "+%F"]))?,
        model(&cpuinfo).context("/proc/cpuinfo has no model name")?,
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        version("nacre-vmm")?,
        sum(prefix)?,
        short(&version("containerd")?),
        short(&version("runc")?)
    ))
}

/// The sum of the files that are installed at `prefix`.
fn sum(prefix: &Path) -> Result<String> {
    let mut files = Command::new("sh");
    // A pipe would hide that cat has failed.
    let script = "set -e; cat \"$@\" >/dev/null; cat \"$@\" | sha256sum";
    files.args(["-c", script, "sum"]);
    files.args(INSTALLED.map(|file| prefix.join(file)));
    let line = first_line(&mut files)?;
    let digits = line.get(..8).context("sha256sum has printed no sum")?;
    Ok(format!("sha256 {digits}"))
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

    #[test]
    fn another_build_has_another_sum() {
        let prefix = tempfile::tempdir().unwrap();
        for file in INSTALLED {
            let path = prefix.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let first = sum(prefix.path()).unwrap();
        assert_eq!(first.len(), "sha256 ".len() + 8);
        fs::write(prefix.path().join(INSTALLED[2]), "another one").unwrap();
        assert_ne!(sum(prefix.path()).unwrap(), first);
        fs::remove_file(prefix.path().join(INSTALLED[3])).unwrap();
        assert!(sum(prefix.path()).is_err());
    }
}
