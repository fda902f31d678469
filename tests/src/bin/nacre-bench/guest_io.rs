//! What a guest's boot, a vsock round trip and a virtio-fs request cost, without containerd: guests under
//! standalone `nacre-vmm`, of both builds in turns.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::guests;
use nacre_tests::guests::exits::Exits;
use nacre_tests::guests::io::{Cost, IoGuest};

use crate::results::{Measure, Results};
use crate::runtimes::MeasuredRuntimes;
use crate::statistics::median;

/// How many round trips, and how many requests, a round makes.
const OPERATIONS: u32 = 1000;

/// What one round of one build has measured.
struct Round {
    boot: Cost,
    round_trip: Cost,
    request: Cost,
}

/// Boots guests of each build in `count` rounds and adds the medians. A round that does not count comes
/// first.
pub fn measure(runtimes: &MeasuredRuntimes, count: usize, results: &mut Results) -> Result<()> {
    let mut builds = Vec::new();
    for build in runtimes.builds() {
        let guests = guests::Build::at(&build.prefix)?;
        builds.push((build, guests, Vec::with_capacity(count)));
    }
    for number in 0..=count {
        for turn in 0..builds.len() {
            let index = (number + turn) % builds.len();
            let (build, guests, rounds) = &mut builds[index];
            let name = build.shim_runtime.name;
            let round = one_round(&build.prefix, guests).with_context(|| format!("a guest of {name}"))?;
            if number > 0 {
                eprintln!("guest {number:2} of {count}: {name}: {round}");
                rounds.push(round);
            }
        }
    }
    let mut rounds = builds.into_iter().map(|(_, _, rounds)| rounds);
    let nacre = rounds.next().context("no build")?;
    report(&nacre, rounds.next().as_deref(), results);
    Ok(())
}

fn one_round(prefix: &Path, build: &guests::Build) -> Result<Round> {
    let boot = boot(prefix)?;
    let mut guest = IoGuest::boot(build)?;
    let round = Round {
        boot,
        round_trip: guest.round_trips(OPERATIONS)?,
        request: guest.requests(OPERATIONS)?,
    };
    guest.finish()?;
    Ok(round)
}

/// Boots the installed guest image until its agent connects.
fn boot(prefix: &Path) -> Result<Cost> {
    let share = prefix.join("share/nacre");
    let shared_tree = tempfile::tempdir()?;
    let output = Command::new(prefix.join("bin/nacre-vmm"))
        .arg("--kernel")
        .arg(share.join("vmlinux"))
        .arg("--initrd")
        .arg(share.join("initramfs.cpio"))
        .arg("--share")
        .arg(shared_tree.path())
        .args(["--until-ready", "--exits"])
        .stdin(Stdio::null())
        .output()
        .context("executing nacre-vmm")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nacre-vmm: {}\n{text}", output.status);
    let (milliseconds, exits) = parse_boot(&text).with_context(|| text.clone().into_owned())?;
    Ok(Cost {
        duration: Duration::from_millis(milliseconds),
        exits: exits.map(Exits::of_all),
    })
}

/// The milliseconds until the agent connected, and KVM's count of exits, if the VMM prints it.
fn parse_boot(text: &str) -> Result<(u64, Option<f64>)> {
    let after = "the agent connected ";
    let line = text.lines().find_map(|line| Some(line.split_once(after)?.1));
    let milliseconds = line.and_then(|line| line.split(' ').next()).context("no agent")?;
    let exits = text
        .lines()
        .find_map(|line| line.trim().strip_suffix(" kvm exits"));
    Ok((
        milliseconds.parse()?,
        exits.map(|count| count.trim().parse()).transpose()?,
    ))
}

/// Adds the duration and the exits of each operation, beside those of the other build.
fn report(nacre: &[Round], other: Option<&[Round]>, results: &mut Results) {
    type Pick = fn(&Round) -> &Cost;
    let rows: [(&str, &str, f64, Pick, &str); 3] = [
        (
            "guest_boot",
            "ms",
            1e3,
            |round| &round.boot,
            "standalone, the guest's first instruction until its agent connects",
        ),
        (
            "vsock_round_trip",
            "µs",
            1e6,
            |round| &round.round_trip,
            "a byte to the guest and back, by the host's clock",
        ),
        (
            "fs_request",
            "µs",
            1e6,
            |round| &round.request,
            "lookup of a missing name, one FUSE request, by the guest's clock",
        ),
    ];
    for (name, unit, scale, pick, note) in rows {
        let duration = |round: &Round| Some(pick(round).duration.as_secs_f64() * scale);
        if let Some(row) = row(name.to_owned(), unit, nacre, other, duration) {
            results.add(Measure {
                note: format!("{note}; median of {} rounds", nacre.len()),
                ..row
            });
        }
        let exits = |round: &Round| pick(round).exits.as_ref().map(Exits::total);
        match row(format!("{name}_exits"), "", nacre, other, exits) {
            Some(row) => results.add(Measure {
                note: kinds(nacre, pick),
                ..row
            }),
            None => eprintln!("{name}_exits: not measured"),
        }
    }
}

/// Medians of what `pick` finds, and of the rounds' ratios; None if a round lacks it.
fn row(
    name: String,
    unit: &'static str,
    nacre: &[Round],
    other: Option<&[Round]>,
    pick: impl Fn(&Round) -> Option<f64>,
) -> Option<Measure> {
    let nacre: Vec<f64> = nacre.iter().map(&pick).collect::<Option<_>>()?;
    let measure = Measure::alone(name, unit, median(&nacre), "");
    let Some(other) = other else {
        return Some(measure);
    };
    let other: Vec<f64> = other.iter().map(&pick).collect::<Option<_>>()?;
    let ratios: Vec<f64> = nacre
        .iter()
        .zip(&other)
        .map(|(nacre, other)| nacre / other)
        .collect();
    Some(Measure {
        other: Some(median(&other)),
        other_ratio: Some(median(&ratios)),
        ..measure
    })
}

/// The kinds of exits of the last round.
fn kinds(rounds: &[Round], pick: fn(&Round) -> &Cost) -> String {
    let exits = rounds.last().and_then(|round| pick(round).exits.as_ref());
    format!("last round: {}", exits.map(Exits::to_string).unwrap_or_default())
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = |cost: &Cost| cost.duration.as_micros();
        write!(
            f,
            "boot {} ms, vsock round trip {} µs, virtio-fs request {} µs",
            self.boot.duration.as_millis(),
            micros(&self.round_trip),
            micros(&self.request)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_parsed_with_and_without_exits() {
        let text = "nacre-vmm: memory: 3.1 ms\nnacre-vmm: the agent connected 812 ms after the guest's first instruction\n";
        assert_eq!(parse_boot(text).unwrap(), (812, None));
        let text = format!("{text}        57 io_out\n      1095 kvm exits\n        40 kvm io_exits\n");
        assert_eq!(parse_boot(&text).unwrap(), (812, Some(1095.0)));
        assert!(parse_boot("nacre-vmm: the guest's kernel panicked\n").is_err());
    }

    #[test]
    fn rows_have_medians_and_the_median_of_the_ratios() {
        let round = |micros: u64, exits: Option<f64>| {
            let cost = Cost {
                duration: Duration::from_micros(micros),
                exits: exits.map(Exits::of_all),
            };
            Round {
                boot: cost.clone(),
                round_trip: cost.clone(),
                request: cost,
            }
        };
        let nacre = [
            round(100, Some(3.0)),
            round(300, Some(5.0)),
            round(200, Some(4.0)),
        ];
        let other = [round(200, None), round(300, None), round(400, None)];
        let mut results = Results::default();
        report(&nacre, Some(&other), &mut results);
        let names: Vec<&str> = results.0.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["guest_boot", "vsock_round_trip", "fs_request"]);
        let ratio = results.0[1].other_ratio.unwrap();
        assert!((results.0[1].nacre - 200.0).abs() < 1e-9 && (ratio - 0.5).abs() < 1e-9);
        let mut results = Results::default();
        report(&nacre, None, &mut results);
        assert_eq!(results.0.len(), 6);
        assert!((results.0[3].nacre - 4.0).abs() < 1e-9, "{:?}", results.0[3]);
    }
}
