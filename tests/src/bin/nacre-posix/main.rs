//! Runs `nacre-files` in a container under runc and in one under Nacre, on the root file system and on a
//! volume, and prints a row for each behaviour: equal, allowed, or DIFFERENT with both observations. Then it
//! exercises file contents under Nacre. Run by `tests/lab/run`, like the end-to-end tests.

mod allowed;
mod containers;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nacre_tests::containerd::{Runtime, ctr};
use nacre_tests::posix::compare::{Verdict, allowed, compare};
use nacre_tests::posix::root::Place;
use nacre_tests::posix::{Behaviour, behaviours};
use nacre_tests::runner;
use nacre_tests::selection::{Selection, command_for};

use crate::containers::Containers;

/// Operations of the exerciser on each place.
const OPERATIONS: u64 = 20_000;
/// The same with --long.
const LONG_OPERATIONS: u64 = 1_000_000;

/// Compares the file systems of Nacre and runc, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Print the behaviours and what each must be, without running them.
    #[arg(long)]
    list: bool,
    /// Observe under one runtime only and print the observations.
    #[arg(long)]
    only: Option<Runtime>,
    /// Make 1,000,000 operations on each place instead of 20,000.
    #[arg(long)]
    long: bool,
    /// Make so many operations on each place.
    #[arg(long, conflicts_with = "long")]
    operations: Option<u64>,
    /// Draws the operations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    selection: Selection,
}

/// What is selected by a name, besides the behaviours.
fn exercise_name(place: Place) -> String {
    format!("random operations on the {}", place.word())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for behaviour in behaviours() {
            println!(
                "{}\t{}",
                behaviour.name,
                behaviour.expected.unwrap_or("as under runc")
            );
        }
        for place in Place::ALL {
            println!("{}", exercise_name(place));
        }
        return ExitCode::SUCCESS;
    }
    let failed = run(&arguments);
    ctr::remove_leftovers();
    runner::exit_code("nacre-posix", &failed)
}

/// Runs what is selected and not taken by another run; returns the number of failures.
fn run(arguments: &Arguments) -> Result<usize> {
    let exercises: Vec<String> = Place::ALL.into_iter().map(exercise_name).collect();
    let mut all: Vec<&str> = behaviours().iter().map(|behaviour| behaviour.name).collect();
    all.extend(exercises.iter().map(String::as_str));
    let chosen: Vec<&'static Behaviour> = behaviours()
        .into_iter()
        .filter(|behaviour| arguments.selection.selects(behaviour.name, &all))
        .collect();
    let containers = Containers::new()?;
    let (mut passed, mut failed) = (0, Vec::new());
    for (number, place) in Place::ALL.into_iter().enumerate() {
        if !chosen.is_empty() && arguments.selection.take(2 * number)? {
            match arguments.only {
                Some(only) => print_under(only, &containers, place, &chosen)?,
                None => passed += compare_all(&containers, place, &chosen, &mut failed)?,
            }
        }
        let name = exercises[number].as_str();
        if arguments.selection.selects(name, &all)
            && !matches!(arguments.only, Some(Runtime::Runc))
            && arguments.selection.take(2 * number + 1)?
        {
            match exercise(arguments, &containers, place) {
                Ok(()) => passed += 1,
                Err(error) => {
                    println!("FAILED     {name}: {error:#}");
                    failed.push(name.to_owned());
                }
            }
        }
    }
    let failed: Vec<&str> = failed.iter().map(String::as_str).collect();
    Ok(runner::print_totals(passed, &failed))
}

/// Observes `chosen` under both runtimes and prints the verdicts. Returns how many pass, and adds to
/// `failed`.
fn compare_all(
    containers: &Containers,
    place: Place,
    chosen: &[&'static Behaviour],
    failed: &mut Vec<String>,
) -> Result<usize> {
    let started = Instant::now();
    let runc = containers.observe(Runtime::Runc, place, chosen)?;
    let halfway = started.elapsed();
    let nacre = containers.observe(Runtime::Nacre, place, chosen)?;
    let mut passed = 0;
    for (behaviour, (runc, nacre)) in chosen.iter().zip(runc.iter().zip(&nacre)) {
        let (name, word) = (behaviour.name, place.word());
        let list = match is_disk(place) {
            true => allowed::ON_DISKS,
            false => allowed::ALLOWED,
        };
        let entry = allowed(list, behaviour, place);
        match compare(behaviour, entry, runc.as_deref(), nacre.as_deref()) {
            Verdict::Equal => passed += 1,
            Verdict::Allowed(reason) => {
                passed += 1;
                println!("allowed    {word}: {name} ({reason})");
            }
            Verdict::Different(observations) => {
                println!("DIFFERENT  {word}: {name}");
                println!("    {}", observations.replace('\n', "\n    "));
                println!("    alone: {}", command_for(name));
                failed.push(format!("{word}: {name}"));
            }
        }
    }
    println!(
        "{}: {} behaviours, runc {:.0} s, nacre {:.0} s",
        place.word(),
        chosen.len(),
        halfway.as_secs_f64(),
        (started.elapsed() - halfway).as_secs_f64()
    );
    Ok(passed)
}

/// Whether the files at `place` are on a disk of the VM: the guest's kernel has the same file system as the host's.
fn is_disk(place: Place) -> bool {
    place == Place::Rootfs && std::env::var("CONTAINERD_SNAPSHOTTER").is_ok_and(|name| name == "blockfile")
}

/// Prints what `chosen` shows under `runtime`.
fn print_under(
    runtime: Runtime,
    containers: &Containers,
    place: Place,
    chosen: &[&'static Behaviour],
) -> Result<()> {
    let observed = containers.observe(runtime, place, chosen)?;
    for (behaviour, observed) in chosen.iter().zip(observed) {
        let observed = observed.unwrap_or_else(|| "(nothing)".to_owned());
        println!("{}: {}: {observed}", place.word(), behaviour.name);
        if let Some(expected) = behaviour.expected
            && expected != observed
        {
            println!("    must be: {expected}");
        }
    }
    Ok(())
}

fn exercise(arguments: &Arguments, containers: &Containers, place: Place) -> Result<()> {
    let started = Instant::now();
    let operations = arguments.operations.unwrap_or(if arguments.long {
        LONG_OPERATIONS
    } else {
        OPERATIONS
    });
    ensure!(operations > 0, "expected at least one operation");
    let report = containers
        .exercise(place, arguments.seed, operations)
        .context("nacre-files exercise")?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "ok         {} ({seconds:.0} s)\n    {}",
        exercise_name(place),
        report.join("\n    ")
    );
    Ok(())
}
