//! KVM's counts of a running VM's exits, from debugfs: they can be read before and after an operation, by any
//! build's VMM. Called by the tests and the benchmark on the host.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Each VM has a directory here, named after the VMM's PID and KVM's descriptor.
const VMS: &str = "/sys/kernel/debug/kvm";
/// The count of all exits.
pub const TOTAL: &str = "exits";
/// The counts of the kinds that explain most of [`TOTAL`]: writes and reads of device registers, halts, and
/// interrupts of the host.
const KINDS: [&str; 6] = [
    TOTAL,
    "mmio_exits",
    "io_exits",
    "halt_exits",
    "irq_exits",
    "irq_window_exits",
];

/// Counts of exits by KVM's names, summed over the vCPUs of a VM.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exits(BTreeMap<&'static str, f64>);

impl Exits {
    /// Reads the counts of the VM of process `pid`; None if the host has no such statistics: debugfs is not
    /// mounted, or this process is in another PID namespace than the host's.
    ///
    /// # Errors
    /// If a count can't be parsed.
    pub fn of(pid: u32) -> Result<Option<Self>> {
        match directory(Path::new(VMS), pid) {
            Some(directory) => Self::read(&directory).map(Some),
            None => Ok(None),
        }
    }

    /// A count of all exits, whose kinds are not known.
    pub fn of_all(total: f64) -> Self {
        Self([(TOTAL, total)].into())
    }

    fn read(directory: &Path) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for kind in KINDS {
            let file = directory.join(kind);
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            counts.insert(kind, text.trim().parse()?);
        }
        Ok(Self(counts))
    }

    /// How many exits each of `operations` caused since `before`.
    pub fn since(&self, before: &Self, operations: u32) -> Self {
        let each = |(kind, count): (&&'static str, &f64)| {
            let earlier = before.0.get(kind).copied().unwrap_or_default();
            (*kind, (count - earlier) / f64::from(operations))
        };
        Self(self.0.iter().map(each).collect())
    }

    /// The count of all exits.
    pub fn total(&self) -> f64 {
        self.0.get(TOTAL).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Exits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} exits", self.total())?;
        for (kind, count) in self
            .0
            .iter()
            .filter(|(kind, count)| **kind != TOTAL && **count >= 0.01)
        {
            write!(f, ", {} {count:.2}", kind.trim_end_matches("_exits"))?;
        }
        Ok(())
    }
}

/// The directory of the VM of process `pid`. A process of Nacre's has one VM.
fn directory(vms: &Path, pid: u32) -> Option<PathBuf> {
    let prefix = format!("{pid}-");
    let mut entries = fs::read_dir(vms).ok()?.flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    found.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_directory_of_the_process() {
        let vms = tempfile::tempdir().unwrap();
        let write = |total: u32| {
            for (name, mmio) in [("12-9", total - 1), ("123-9", 0)] {
                let vm = vms.path().join(name);
                fs::create_dir_all(&vm).unwrap();
                for kind in KINDS {
                    fs::write(vm.join(kind), "0\n").unwrap();
                }
                fs::write(vm.join(TOTAL), format!("{total}\n")).unwrap();
                fs::write(vm.join("mmio_exits"), format!("{mmio}\n")).unwrap();
            }
        };
        write(100);
        let vm = directory(vms.path(), 12).unwrap();
        assert!(vm.ends_with("12-9"));
        let before = Exits::read(&vm).unwrap();
        write(350);
        let each = Exits::read(&vm).unwrap().since(&before, 100);
        assert_eq!(each.to_string(), "2.50 exits, mmio 2.50");
        assert!(directory(vms.path(), 1).is_none());
        assert!(directory(&vms.path().join("missing"), 12).is_none());
    }
}
