//! A guest that boots, and one that continues from a snapshot: from the execution of the VMM until the agent connects
//! to the host, its first word. Standalone `nacre-vmm` beside QEMU's microvm machine, Firecracker and Cloud
//! Hypervisor, with the same kernel, agent, memory and number of vCPUs, in turns. All snapshots are of the same
//! moment: the agent is prepared and waits.

mod cloud_hypervisor;
mod firecracker;
mod http;
mod nacre;
mod qemu;
mod qmp;
mod running;
mod sockets;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use self::cloud_hypervisor::CloudHypervisor;
use self::firecracker::Firecracker;
use self::nacre::Guests;
use self::qemu::Qemu;
pub use self::qemu::{MEMORY_MIB, microvm};
use crate::order::order;
use crate::results::{Measure, Results};
use crate::runtimes::MeasuredRuntimes;
use crate::statistics::median;

/// In how many rounds guests boot; under emulation one takes seconds.
const BOOTS: usize = 3;

/// The peers that have rows of their own, and the ends of the rows' names. QEMU is beside nacre-vmm in the first one.
const OWN_ROWS: [(&str, &str); 2] = [
    ("Firecracker", "firecracker"),
    ("Cloud Hypervisor", "cloud_hypervisor"),
];

/// The parameters of nacre-vmm's guests (`vmm/src/boot/cmdline.rs`) but panic=-1, for the kernel of a peer's. Without a
/// shared tree the agent ends right after it has dialed: the panic must not end the VMM before the host has seen that.
pub const PARAMETERS: &str = "dhash_entries=16384 ihash_entries=8192 pci=noearly panic=0 reboot=acpi \
    no_timer_check noreplace-smp swiotlb=noforce memory_hotplug.online_policy=auto-movable random.trust_cpu=on \
    console=ttyS0 quiet loglevel=4";

/// The programs of the peers.
#[derive(Debug, Clone, Copy)]
pub struct Programs<'a> {
    /// QEMU.
    pub qemu: &'a Path,
    /// Firecracker.
    pub firecracker: &'a Path,
    /// Cloud Hypervisor.
    pub cloud_hypervisor: &'a Path,
}

/// The files that a guest boots from.
#[derive(Debug, Clone)]
struct Image {
    kernel: PathBuf,
    /// It has the agent.
    initramfs: PathBuf,
}

/// A VMM that boots guests, and that has saved one.
trait Vmm {
    /// Milliseconds from the execution of the VMM until the agent of a guest that boots connects.
    fn boot(&self) -> Result<f64>;

    /// The same of a guest that continues from the snapshot.
    fn restore(&self) -> Result<f64>;
}

/// How a peer differs from nacre-vmm, for the notes.
#[derive(Debug, Clone, Copy)]
struct Differences {
    /// Its machine, in all rows.
    machine: &'static str,
    /// Also, when a guest is restored.
    restore: &'static str,
}

/// A VMM in the rounds.
struct Entrant {
    name: &'static str,
    /// None once a peer has failed.
    vmm: Option<Box<dyn Vmm>>,
    /// None for a build of Nacre, whose failure ends the run.
    differences: Option<Differences>,
    /// The times of the rounds.
    milliseconds: Vec<f64>,
}

/// What a row is of.
struct Row {
    name: &'static str,
    note: &'static str,
    time: fn(&dyn Vmm) -> Result<f64>,
    differences: fn(Differences) -> String,
}

const BOOT: Row = Row {
    name: "boot_to_agent",
    note: "execution of the VMM until the agent connects, cold boot",
    time: |vmm| vmm.boot(),
    differences: |peer| peer.machine.to_owned(),
};
const RESTORE: Row = Row {
    name: "restore",
    note: "execution of the VMM until the agent connects, from a snapshot of a booted guest",
    time: |vmm| vmm.restore(),
    differences: |peer| format!("{}; {}", peer.machine, peer.restore),
};

/// Boots guests of each VMM in a few rounds and continues some in `count` rounds, and adds the rows; without a peer
/// that can't be used here.
///
/// # Errors
/// If a guest of Nacre's does not boot, is not saved, or does not go on.
pub fn measure(
    runtimes: &MeasuredRuntimes,
    programs: Programs<'_>,
    count: usize,
    results: &mut Results,
) -> Result<()> {
    let nacre = Guests::save(&runtimes.nacre.prefix).context("saving a guest of nacre-vmm")?;
    let mut entrants = vec![Entrant::new("nacre", Box::new(nacre), None)];
    let share = runtimes.nacre.prefix.join("share/nacre");
    let image = Image {
        kernel: share.join("vmlinux"),
        initramfs: share.join("initramfs.cpio"),
    };
    let qemu = Qemu::save(programs.qemu, &image);
    let firecracker = Firecracker::save(programs.firecracker, &image);
    let cloud_hypervisor = CloudHypervisor::save(programs.cloud_hypervisor, &image);
    entrants.extend(peer("QEMU", qemu, qemu::DIFFERENCES));
    entrants.extend(peer("Firecracker", firecracker, firecracker::DIFFERENCES));
    let differences = cloud_hypervisor::DIFFERENCES;
    entrants.extend(peer("Cloud Hypervisor", cloud_hypervisor, differences));
    // An older one can't save a guest.
    if let Some(other) = runtimes.other.as_ref().filter(|build| build.has_templates) {
        entrants.push(Entrant::new(
            "other",
            Box::new(Guests::save(&other.prefix)?),
            None,
        ));
    }
    for (row, count) in [(BOOT, BOOTS), (RESTORE, count)] {
        alternate(&row, &mut entrants, count)?;
        report(&row, &entrants, results);
    }
    Ok(())
}

/// A peer that has saved a guest; None if it has not, and standard error has the reason.
fn peer(name: &'static str, saved: Result<impl Vmm + 'static>, differences: Differences) -> Option<Entrant> {
    match saved {
        Ok(vmm) => Some(Entrant::new(name, Box::new(vmm), Some(differences))),
        Err(error) => {
            eprintln!("restore: {name} is not measured: {error:#}");
            None
        }
    }
}

/// Takes the time of each VMM in `count` rounds.
fn alternate(row: &Row, entrants: &mut [Entrant], count: usize) -> Result<()> {
    for entrant in &mut *entrants {
        entrant.milliseconds.clear();
    }
    // The first round warms up.
    for number in 0..=count {
        for index in order(number, entrants.len()) {
            let entrant = &mut entrants[index];
            let Some(taken) = entrant.time(row)? else {
                continue;
            };
            eprintln!(
                "{} {number:2} of {count}: {} {taken:.0} ms",
                row.name, entrant.name
            );
            if number > 0 {
                entrant.milliseconds.push(taken);
            }
        }
    }
    Ok(())
}

impl Entrant {
    fn new(name: &'static str, vmm: Box<dyn Vmm>, differences: Option<Differences>) -> Self {
        Self {
            name,
            vmm: Some(vmm),
            differences,
            milliseconds: Vec::new(),
        }
    }

    /// Milliseconds of one guest; None if a peer fails, which is no longer measured then.
    fn time(&mut self, row: &Row) -> Result<Option<f64>> {
        let Some(vmm) = &self.vmm else {
            return Ok(None);
        };
        match (row.time)(vmm.as_ref()) {
            Ok(taken) => Ok(Some(taken)),
            Err(error) if self.differences.is_some() => {
                eprintln!("{}: {} is no longer measured: {error:#}", row.name, self.name);
                self.vmm = None;
                self.milliseconds.clear();
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("{} of {}", row.name, self.name)),
        }
    }
}

/// Adds the row, beside QEMU if it was measured, and those beside the other peers.
fn report(row: &Row, entrants: &[Entrant], results: &mut Results) {
    let times = |name: &str| {
        let found = entrants.iter().find(|entrant| entrant.name == name);
        found.filter(|entrant| !entrant.milliseconds.is_empty())
    };
    let Some(nacre) = times("nacre") else {
        return;
    };
    let beside = |name: &str, peer: &Entrant| {
        let times = (peer.name, &peer.milliseconds[..]);
        let measure = Measure::of_rounds((name, "ms", row.note), &nacre.milliseconds, times);
        let differences = peer.differences.map(row.differences);
        let note = [&measure.note[..], &differences.unwrap_or_default()].join("; ");
        Measure { note, ..measure }
    };
    let mut measure = times("QEMU").map_or_else(
        || Measure::alone(row.name, "ms", median(&nacre.milliseconds), row.note),
        |peer| beside(row.name, peer),
    );
    if let Some(other) = times("other") {
        let beside = beside(row.name, other);
        (measure.other, measure.other_ratio) = (beside.peer, beside.ratio);
    }
    results.add(measure);
    for (name, end) in OWN_ROWS {
        if let Some(peer) = times(name) {
            results.add(beside(&format!("{}_{end}", row.name), peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    /// A VMM whose guests take that long, and can't be restored after 20 ms.
    struct Fake(f64);

    impl Vmm for Fake {
        fn boot(&self) -> Result<f64> {
            Ok(self.0)
        }

        fn restore(&self) -> Result<f64> {
            if self.0 > 20.0 {
                bail!("too slow");
            }
            Ok(self.0)
        }
    }

    fn entrants(nacre: f64, qemu: f64) -> Vec<Entrant> {
        let differences = Differences {
            machine: "fw_cfg",
            restore: "copies",
        };
        vec![
            Entrant::new("nacre", Box::new(Fake(nacre)), None),
            Entrant::new("QEMU", Box::new(Fake(qemu)), Some(differences)),
            Entrant::new("Firecracker", Box::new(Fake(4.0)), Some(differences)),
            Entrant::new("Cloud Hypervisor", Box::new(Fake(8.0)), Some(differences)),
            Entrant::new("other", Box::new(Fake(5.0)), None),
        ]
    }

    #[test]
    fn rows_are_beside_the_peer_and_the_other_build() {
        let mut results = Results::default();
        let mut entrants = entrants(10.0, 20.0);
        for row in [BOOT, RESTORE] {
            alternate(&row, &mut entrants, 3).unwrap();
            report(&row, &entrants, &mut results);
        }
        let names: Vec<&str> = results.0.iter().map(|row| row.name.as_str()).collect();
        let expected = [
            "boot_to_agent",
            "boot_to_agent_firecracker",
            "boot_to_agent_cloud_hypervisor",
            "restore",
            "restore_firecracker",
            "restore_cloud_hypervisor",
        ];
        assert_eq!(names, expected);
        let [boot, _, _, restore, firecracker, cloud_hypervisor] = &results.0[..] else {
            panic!("{results:?}")
        };
        assert_eq!(
            (firecracker.peer_name.as_deref(), firecracker.ratio),
            (Some("Firecracker"), Some(2.5))
        );
        assert_eq!((boot.peer_name.as_deref(), boot.ratio), (Some("QEMU"), Some(0.5)));
        assert_eq!(
            (cloud_hypervisor.peer_name.as_deref(), cloud_hypervisor.ratio),
            (Some("Cloud Hypervisor"), Some(1.25))
        );
        assert!(boot.note.ends_with("; fw_cfg") && restore.note.ends_with("; fw_cfg; copies"));
        assert_eq!((restore.other, restore.other_ratio), (Some(5.0), Some(2.0)));
        assert!(entrants.iter().all(|entrant| entrant.milliseconds.len() == 3));
    }

    #[test]
    fn a_missing_peer_is_an_error() {
        let image = Image {
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
        };
        let program = Path::new("/nowhere/vmm");
        let errors = [
            Firecracker::save(program, &image).err(),
            CloudHypervisor::save(program, &image).err(),
        ];
        for error in errors {
            let error = format!("{:#}", error.unwrap());
            assert!(error.contains("executing /nowhere/vmm"), "{error}");
        }
    }

    #[test]
    fn a_peer_that_fails_is_left_out_and_a_build_ends_the_run() {
        let mut results = Results::default();
        let mut failing = entrants(10.0, 40.0);
        alternate(&RESTORE, &mut failing, 2).unwrap();
        report(&RESTORE, &failing, &mut results);
        let restore = &results.0[0];
        assert!(restore.peer.is_none() && restore.other_ratio.is_some() && !restore.note.contains("fw_cfg"));
        let error = alternate(&RESTORE, &mut entrants(40.0, 10.0), 2).unwrap_err();
        assert_eq!(format!("{error:#}"), "restore of nacre: too slow");
    }
}
