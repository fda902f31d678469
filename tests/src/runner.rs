//! Runs tests one after the other, compares snapshots of the host before and after each, and prints a line
//! for each and the totals. Called by the test programs; `tests/all` reads the last line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::containerd::ctr;
use crate::leaks::Snapshot;
use crate::selection::{Selection, command_for};

/// How long the processes of a test may take to exit after it.
pub const EXIT_DEADLINE: Duration = Duration::from_secs(15);

/// The exit code of the test program `name`: 0 if none of its tests failed, 1 if some did, 2 after printing
/// why they could not be run.
pub fn exit_code(name: &str, failed: &Result<usize>) -> ExitCode {
    match failed {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs those of the tests `names` that no other run has taken, in order: `run` is called with the index of
/// each. Returns the number of failures.
///
/// # Errors
/// If the queue of `selection` can't be written.
pub fn run_all(
    names: &[&str],
    selection: &Selection,
    mut run: impl FnMut(usize) -> Result<()>,
) -> Result<usize> {
    let started = Instant::now();
    let (mut passed, mut failures) = (0, Vec::new());
    for (index, name) in names.iter().enumerate() {
        if !selection.take(index)? {
            continue;
        }
        let at = Instant::now();
        let outcome = run_one(|| run(index));
        let took = at.elapsed();
        let result = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "[{:2}/{}] {name:60} {result} ({:.1} s)",
            index + 1,
            names.len(),
            took.as_secs_f64()
        );
        match outcome {
            Ok(()) => passed += 1,
            Err(error) => {
                println!("        {}", format!("{error:#}").replace('\n', "\n        "));
                println!("        alone: {}", command_for(name));
                failures.push(*name);
            }
        }
    }
    println!("the tests took {:.0} s", started.elapsed().as_secs_f64());
    Ok(print_totals(passed, &failures))
}

/// Prints the names of those that failed and, as the last line, the totals; returns the number of failures.
pub fn print_totals(passed: usize, failed: &[&str]) -> usize {
    for name in failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    failed.len()
}

/// Groups the items of which `shares` is true for the first of a group; groups are in the order of their first
/// items.
pub fn grouped<T>(items: &[&'static T], shares: impl Fn(&T, &T) -> bool) -> Vec<Vec<&'static T>> {
    let mut groups: Vec<Vec<&'static T>> = Vec::new();
    for item in items {
        let found = groups
            .iter_mut()
            .find(|group| group.first().is_some_and(|first| shares(first, item)));
        match found {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    groups
}

/// Runs a test and fails if it leaves anything behind.
fn run_one(run: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = Snapshot::take().context("taking a snapshot of the host before the test")?;
    let outcome = run();
    ctr::remove_leftovers();
    let left = before
        .compare(EXIT_DEADLINE)
        .context("comparing the host with the snapshot after the test");
    outcome.and(left)
}
