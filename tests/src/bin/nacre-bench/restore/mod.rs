//! A guest that continues from a snapshot: from the execution of the VMM until the agent connects to the host, its
//! first word. Standalone `nacre-vmm` beside QEMU's microvm machine, with the same kernel, agent, memory and number
//! of vCPUs, in turns. Both snapshots are of the same moment: the agent is prepared and waits.

mod qemu;
mod qmp;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nacre_tests::guests::{Build, until_connected};
use tempfile::TempDir;

use self::qemu::{Peer, Qemu};
use crate::results::{Measure, Results};
use crate::runtimes::MeasuredRuntimes;

/// Continues guests of each VMM in `count` rounds, and adds the row `restore`; without a peer if `program`, QEMU,
/// can't be used here.
///
/// # Errors
/// If a guest is not saved, or does not go on.
pub fn measure(
    runtimes: &MeasuredRuntimes,
    program: &Path,
    count: usize,
    results: &mut Results,
) -> Result<()> {
    let nacre = Snapshot::save(&runtimes.nacre.prefix).context("saving a guest of nacre-vmm")?;
    // An older one can't save a guest.
    let other = runtimes.other.as_ref().filter(|build| build.has_templates);
    let other = other.map(|build| Snapshot::save(&build.prefix)).transpose()?;
    let mut peer = match qemu(runtimes, program) {
        Ok(peer) => Some(peer),
        Err(error) => {
            eprintln!("restore: QEMU is not measured: {error:#}");
            None
        }
    };
    let mut milliseconds = [const { Vec::new() }; 3];
    // The first round warms up.
    for number in 0..=count {
        for turn in 0..3 {
            let index = (number + turn) % 3;
            let Some(taken) = (match index {
                0 => Some(nacre.restore()?),
                1 => restore_peer(&mut peer),
                _ => other.as_ref().map(Snapshot::restore).transpose()?,
            }) else {
                continue;
            };
            let name = ["nacre", "QEMU", "other"][index];
            eprintln!("restore {number:2} of {count}: {name} {taken:.0} ms");
            if number > 0 {
                milliseconds[index].push(taken);
            }
        }
    }
    if peer.is_none() {
        milliseconds[1].clear();
    }
    report(&milliseconds, results);
    Ok(())
}

/// Milliseconds of a restore of QEMU; None, and no peer any more, if it fails.
fn restore_peer(peer: &mut Option<Peer>) -> Option<f64> {
    match peer.as_ref()?.restore() {
        Ok(taken) => Some(taken),
        Err(error) => {
            eprintln!("restore: QEMU is no longer measured: {error:#}");
            *peer = None;
            None
        }
    }
}

fn qemu(runtimes: &MeasuredRuntimes, program: &Path) -> Result<Peer> {
    let share = runtimes.nacre.prefix.join("share/nacre");
    let qemu = Qemu {
        program: program.to_owned(),
        kernel: share.join("vmlinux"),
        initramfs: share.join("initramfs.cpio"),
    };
    Peer::save(qemu)
}

fn report([nacre, peer, other]: &[Vec<f64>; 3], results: &mut Results) {
    let row = (
        "restore",
        "ms",
        "execution of the VMM until the agent connects, from a snapshot of a booted guest",
    );
    let mut measure = if peer.is_empty() {
        Measure::alone(row.0, row.1, crate::statistics::median(nacre), row.2)
    } else {
        let beside = Measure::of_rounds(row, nacre, ("QEMU", peer));
        let note = format!("{}; {}", beside.note, qemu::DIFFERENCES);
        Measure { note, ..beside }
    };
    if !other.is_empty() {
        let beside = Measure::of_rounds(row, nacre, ("other", other));
        (measure.other, measure.other_ratio) = (beside.peer, beside.ratio);
    }
    results.add(measure);
}

/// A saved guest of a build of Nacre.
struct Snapshot {
    build: Build,
    directory: PathBuf,
    /// The tree that the restored guest shares, as a pod does.
    shared: PathBuf,
    _temporary: TempDir,
}

impl Snapshot {
    /// Boots the installed guest image of the build at `prefix`, and saves it when its agent is ready.
    fn save(prefix: &Path) -> Result<Self> {
        let build = Build::at(prefix)?;
        let build = build.with_initramfs(build.agent_initramfs());
        let temporary = tempfile::tempdir()?;
        let directory = temporary.path().join("snapshot");
        let shared = temporary.path().join("shared");
        std::fs::create_dir(&shared)?;
        build.run_vmm(&["--save", &directory.to_string_lossy()])?;
        Ok(Self {
            build,
            directory,
            shared,
            _temporary: temporary,
        })
    }

    /// Milliseconds from the execution of nacre-vmm until the agent connects.
    fn restore(&self) -> Result<f64> {
        let mut command = self.build.vmm(&["--until-ready", "--restore"]);
        command.arg(&self.directory).arg("--share").arg(&self.shared);
        let (connected, _) = until_connected(command)?;
        Ok(connected.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_has_a_row_with_and_without_peers() {
        let (nacre, qemu, other) = (vec![10.0, 20.0, 30.0], vec![40.0, 40.0, 40.0], vec![5.0; 3]);
        let mut results = Results::default();
        report(&[nacre.clone(), qemu, other], &mut results);
        report(&[nacre, Vec::new(), Vec::new()], &mut results);
        let [beside, alone] = &results.0[..] else {
            panic!("{results:?}")
        };
        assert_eq!((beside.peer_name, beside.ratio), (Some("QEMU"), Some(0.5)));
        assert!(beside.note.contains("fw_cfg") && !alone.note.contains("fw_cfg"));
        assert_eq!((beside.other, beside.other_ratio), (Some(5.0), Some(4.0)));
        assert!((alone.nacre - 20.0).abs() < 1e-9 && alone.peer.is_none() && alone.other.is_none());
    }
}
