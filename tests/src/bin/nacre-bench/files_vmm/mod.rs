//! Files of a guest of standalone nacre-vmm beside one of QEMU's microvm machine and beside runc, all in a new ext4 of the
//! host: a root file system beside virtiofsd with cache=always, a volume beside virtiofsd with cache=auto, and a disk
//! beside QEMU's virtio-blk. The same program takes the times ([`nacre_tests::file_times`]), by the guest's clock.

mod qemu;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::container_program::Program;
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::{Run, fresh_id};
use nacre_tests::file_times::{MARK, STEPS, Step, Times, parse};
use nacre_tests::guests::Build;
use nacre_tests::guests::file_times::{Place, run};
use nacre_tests::posix::root::{self, Volume};

pub use self::qemu::Programs;
use crate::order::order;
use crate::results::{Measure, Results};
use crate::statistics::median;

/// Takes the times of one guest or container.
type Take<'a> = Box<dyn Fn() -> Result<Times> + 'a>;

/// Who takes part in the rounds of a place.
struct Entrant<'a> {
    name: &'static str,
    /// The end of the names of the rows beside it.
    suffix: &'static str,
    /// None once a peer has failed.
    take: Option<Take<'a>>,
    rounds: Vec<Times>,
}

impl<'a> Entrant<'a> {
    fn new(name: &'static str, suffix: &'static str, take: impl Fn() -> Result<Times> + 'a) -> Self {
        Self {
            name,
            suffix,
            take: Some(Box::new(take)),
            rounds: Vec::new(),
        }
    }

    /// The figures of step number `index`.
    fn figures(&self, index: usize) -> Vec<f64> {
        self.rounds
            .iter()
            .map(|times| STEPS[index].figure(times[index]))
            .collect()
    }
}

/// How many times as fast as the peer VMM each place is to be, and the peer's name.
const fn peer(place: Place) -> (f64, &'static str) {
    match place {
        Place::Rootfs => (4.0, "virtiofsd, cache=always"),
        Place::Volume => (1.5, "virtiofsd, cache=auto"),
        Place::Disk => (1.2, "QEMU, virtio-blk"),
    }
}

/// Measures `count` rounds at each place, after one that warms up, and adds the rows. A peer that is missing or fails has
/// none.
///
/// # Errors
/// If a guest of `build` fails.
pub fn measure(build: &Build, programs: &Programs, count: usize, results: &mut Results) -> Result<()> {
    let program = Program::new("nacre-files")?;
    for place in Place::ALL {
        let (_, name) = peer(place);
        let mut entrants = [
            Entrant::new("nacre", "", || run(build, place, &Volume::new()?.path())),
            Entrant::new(name, "", || programs.run(build, place, &Volume::new()?.path())),
            Entrant::new("runc", "_runc", || run_container(&program, &Volume::new()?)),
        ];
        for number in 0..=count {
            for index in order(number, entrants.len()) {
                let label = format!("files-vmm: {} {number} of {count}", place.word());
                take(&mut entrants[index], index > 0, &label)?;
                if number == 0 {
                    entrants[index].rounds.clear();
                }
            }
        }
        report(place, &entrants, results);
    }
    Ok(())
}

/// Adds a round of `entrant`. A peer that fails is left out from now on, and so are its rounds.
fn take(entrant: &mut Entrant<'_>, is_peer: bool, label: &str) -> Result<()> {
    let name = entrant.name;
    let Some(take) = &entrant.take else {
        return Ok(());
    };
    match take() {
        Ok(times) => {
            let milliseconds = times.map(|time| time.as_millis());
            eprintln!("{label}: {name} {milliseconds:?} ms");
            entrant.rounds.push(times);
        }
        Err(error) if is_peer => {
            eprintln!("{label}: {name} is no longer measured: {error:#}");
            entrant.take = None;
            entrant.rounds.clear();
        }
        Err(error) => return Err(error).with_context(|| format!("{label}: {name}")),
    }
    Ok(())
}

/// Runs the program in a container of runc's, in a bind mount of `storage`.
fn run_container(program: &Program, storage: &Volume) -> Result<Times> {
    let mut command = program.command().to_vec();
    let directory = format!("{}/work", root::Place::Volume.directory());
    std::fs::create_dir(storage.path().join("work"))?;
    command.extend(["times".to_owned(), directory]);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let container = Run {
        flags: &["--mount", &program.mount(), "--mount", &storage.mount()],
        command: &command,
        runtime: Runtime::Runc,
        ..Run::default()
    };
    let output = container.output(&fresh_id("files-vmm"))?;
    let text = output.text();
    ensure!(text.contains(MARK), "{text}{}", output.stderr);
    parse(&text)
}

/// Adds a row for each step, beside the peer VMM if it was measured, and one beside runc.
fn report(place: Place, entrants: &[Entrant<'_>; 3], results: &mut Results) {
    let [nacre, peers @ ..] = entrants;
    for (index, step) in STEPS.iter().enumerate() {
        let name = format!("files_vmm_{}_{}", place.word(), step.name);
        let figures = nacre.figures(index);
        for peer in peers {
            let name = format!("{name}{}", peer.suffix);
            let note = note(place, step, peer);
            let row = (&name[..], step.unit(), &note[..]);
            if !peer.rounds.is_empty() {
                results.add(Measure::of_rounds(
                    row,
                    &figures,
                    (peer.name, &peer.figures(index)),
                ));
            } else if peer.suffix.is_empty() {
                results.add(Measure::alone(
                    &name[..],
                    step.unit(),
                    median(&figures),
                    step.what,
                ));
            }
        }
    }
}

/// What the row of a step beside `peer` is of, and what is wanted.
fn note(place: Place, step: &Step, entrant: &Entrant<'_>) -> String {
    let (faster, name) = peer(place);
    if entrant.name != name {
        return step.what.to_owned();
    }
    let wanted = if step.is_rate() {
        format!("at least {faster}")
    } else {
        format!("at most {:.2}", 1.0 / faster)
    };
    format!("{}; wanted: {wanted}", step.what)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::bail;

    use super::*;

    /// The rows at a place where each step takes as many seconds, or fails.
    fn rows(place: Place, seconds: [Option<u64>; 3]) -> Vec<Measure> {
        let (_, name) = peer(place);
        let entrant = |index: usize, name, suffix| {
            let mut entrant = Entrant::new(name, suffix, || bail!("not called"));
            if let Some(seconds) = seconds[index] {
                entrant.rounds = vec![[Duration::from_secs(seconds); STEPS.len()]; 3];
            }
            entrant
        };
        let entrants = [
            entrant(0, "nacre", ""),
            entrant(1, name, ""),
            entrant(2, "runc", "_runc"),
        ];
        let mut results = Results::default();
        report(place, &entrants, &mut results);
        results.0
    }

    #[test]
    fn a_step_has_a_row_beside_the_peer_and_one_beside_runc() {
        let rows = rows(Place::Rootfs, [Some(2), Some(8), Some(1)]);
        assert_eq!(rows.len(), 2 * STEPS.len());
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        let untar = row("files_vmm_rootfs_untar");
        assert_eq!(untar.peer_name.as_deref(), Some("virtiofsd, cache=always"));
        assert_eq!(
            (untar.nacre, untar.peer, untar.ratio),
            (2000.0, Some(8000.0), Some(0.25))
        );
        assert!(
            untar.note.contains("; wanted: at most 0.25; medians of 3 rounds"),
            "{}",
            untar.note
        );
        let read = row("files_vmm_rootfs_read");
        assert_eq!(
            (read.nacre, read.ratio, &read.unit[..]),
            (32.0, Some(4.0), "MiB/s")
        );
        assert!(read.note.contains("wanted: at least 4;"), "{}", read.note);
        let beside_runc = row("files_vmm_rootfs_untar_runc");
        assert_eq!(
            (beside_runc.peer_name.as_deref(), beside_runc.ratio),
            (Some("runc"), Some(2.0))
        );
        assert!(!beside_runc.note.contains("wanted"));
    }

    #[test]
    fn a_peer_that_fails_is_left_out_and_a_guest_of_nacres_ends_the_run() {
        let mut peer = Entrant::new("peer", "", || bail!("no QEMU"));
        peer.rounds = vec![Times::default()];
        take(&mut peer, true, "round").unwrap();
        assert!(peer.rounds.is_empty() && peer.take.is_none());
        take(&mut peer, true, "round").unwrap();
        let mut nacre = Entrant::new("nacre", "", || bail!("no KVM"));
        let error = take(&mut nacre, false, "round").unwrap_err();
        assert_eq!(format!("{error:#}"), "round: nacre: no KVM");
        let mut fine = Entrant::new("nacre", "", || Ok(Times::default()));
        take(&mut fine, false, "round").unwrap();
        assert_eq!(fine.rounds.len(), 1);
    }

    #[test]
    fn without_a_peer_a_step_has_a_row_of_nacres_alone() {
        let rows = rows(Place::Disk, [Some(2), None, None]);
        assert_eq!(rows.len(), STEPS.len());
        assert!(rows.iter().all(|row| row.peer.is_none() && row.ratio.is_none()));
        assert_eq!(rows[0].name, "files_vmm_disk_untar");
    }
}
