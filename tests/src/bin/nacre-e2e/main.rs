//! Runs the end-to-end tests, with real containerd and real guests. `tests/lab/run` starts it on a host with
//! working KVM and sets CONTAINERD_ADDRESS and PATH. Tests run one at a time, and each must leave nothing
//! behind on the host.
//!
//! `nacre-e2e [--core] [--list] [NAME…]` runs all tests, the core ones, or those named: by a whole name, or
//! by a part of it.

mod bad_specs;
mod calls;
mod events;
mod execs;
mod faults;
mod files;
mod leaks;
mod operator;
mod pods;
mod runs;
mod setup;
mod streams;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use nacre_tests::containerd::ctr;
use nacre_tests::selection::{Selection, command_for};

/// An end-to-end test.
struct Test {
    /// What it shows; `nacre-e2e NAME` selects by it.
    name: &'static str,
    /// Whether it also runs under other versions of containerd than the distribution's.
    core: bool,
    run: fn() -> Result<()>,
}

const fn test(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test {
        name,
        core: false,
        run,
    }
}

const fn core(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test {
        name,
        core: true,
        run,
    }
}

/// End-to-end tests of Nacre, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Run only the tests that must pass under every version of containerd.
    #[arg(long)]
    core: bool,
    /// Print the tests without running them.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    selection: Selection,
}

fn tests() -> Vec<Test> {
    [
        runs::TESTS,
        files::TESTS,
        streams::TESTS,
        execs::TESTS,
        events::TESTS,
        calls::TESTS,
        pods::TESTS,
        bad_specs::TESTS,
        faults::TESTS,
        operator::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|test| Test { ..*test })
    .collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let all: Vec<&str> = tests().iter().map(|test| test.name).collect();
    let chosen: Vec<Test> = tests()
        .into_iter()
        .filter(|test| test.core || !arguments.core)
        .filter(|test| arguments.selection.selects(test.name, &all))
        .collect();
    if arguments.list {
        for test in &chosen {
            println!("{}", test.name);
        }
        return ExitCode::SUCCESS;
    }
    match run_all(&chosen, &arguments.selection) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nacre-e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs those of `tests` that no other run has taken, in order, prints a line for each and the totals;
/// returns the number of failures.
fn run_all(tests: &[Test], selection: &Selection) -> Result<usize> {
    println!("containerd: {}", setup::containerd_version()?);
    let started = Instant::now();
    let (mut passed, mut failures) = (0, Vec::new());
    for (index, test) in tests.iter().enumerate() {
        if !selection.take(index)? {
            continue;
        }
        let at = Instant::now();
        let outcome = run_one(test);
        let took = at.elapsed();
        let result = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "[{:2}/{}] {:60} {result} ({:.1} s)",
            index + 1,
            tests.len(),
            test.name,
            took.as_secs_f64()
        );
        match outcome {
            Ok(()) => passed += 1,
            Err(error) => {
                println!("        {}", format!("{error:#}").replace('\n', "\n        "));
                println!("        alone: {}", command_for(test.name));
                failures.push(test.name);
            }
        }
    }
    println!("end-to-end tests took {:.0} s", started.elapsed().as_secs_f64());
    for name in &failures {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed", failures.len());
    Ok(failures.len())
}

/// Runs a test and compares snapshots of the host before and after it.
fn run_one(test: &Test) -> Result<()> {
    let before = leaks::Snapshot::take().context("taking a snapshot of the host before the test")?;
    let outcome = (test.run)();
    ctr::remove_leftovers();
    let left = before
        .compare(Duration::from_secs(15))
        .context("comparing the host with the snapshot after the test");
    outcome.and(left)
}
