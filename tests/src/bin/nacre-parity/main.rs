//! Runs each behaviour under runc and under Nacre and prints one row for each: equal, allowed, or DIFFERENT
//! with both outcomes. Run by `tests/lab/run`, like the end-to-end tests.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use nacre_tests::containerd::{Runtime, ctr};
use nacre_tests::parity::{Behaviour, Verdict, behaviours, compare, groups, run_group};
use nacre_tests::runner;
use nacre_tests::selection::{Selection, command_for};

/// Compares Nacre with runc, behaviour by behaviour, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Print the behaviours and what each covers, without running them.
    #[arg(long)]
    list: bool,
    /// Run under one runtime only and print the outcomes.
    #[arg(long)]
    only: Option<Runtime>,
    #[command(flatten)]
    selection: Selection,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let all: Vec<&str> = behaviours().iter().map(|behaviour| behaviour.name).collect();
    let chosen: Vec<&'static Behaviour> = behaviours()
        .into_iter()
        .filter(|behaviour| arguments.selection.selects(behaviour.name, &all))
        .collect();
    if arguments.list {
        for behaviour in &chosen {
            println!("{}\t{}", behaviour.name, behaviour.covers.join(" "));
        }
        return ExitCode::SUCCESS;
    }
    let failed = match arguments.only {
        Some(only) => Ok(run_under(&chosen, only)),
        None => compare_all(&chosen, &arguments.selection),
    };
    ctr::remove_leftovers();
    runner::exit_code("nacre-parity", &failed)
}

/// Runs those groups of `chosen` that no other run has taken under both runtimes and prints the verdicts;
/// returns the number of failures.
fn compare_all(chosen: &[&'static Behaviour], selection: &Selection) -> Result<usize> {
    let started = Instant::now();
    let (mut equal, mut allowed, mut different) = (0, 0, Vec::new());
    for (number, group) in groups(chosen).into_iter().enumerate() {
        if !selection.take(number)? {
            continue;
        }
        let at = Instant::now();
        let runc = run_group(&group, Runtime::Runc);
        let nacre = run_group(&group, Runtime::Nacre);
        let seconds = at.elapsed().as_secs_f64();
        let took = match group.len() {
            1 => format!(" ({seconds:.1} s)"),
            _ => String::new(),
        };
        for (behaviour, (runc, nacre)) in group.iter().zip(runc.iter().zip(&nacre)) {
            match compare(behaviour.allowed_difference.as_ref(), runc, nacre) {
                Verdict::Equal => {
                    equal += 1;
                    println!("equal      {}{took}", behaviour.name);
                }
                Verdict::Allowed(reason) => {
                    allowed += 1;
                    println!("allowed    {} ({reason}){took}", behaviour.name);
                }
                Verdict::Different(outcomes) => {
                    println!("DIFFERENT  {}{took}", behaviour.name);
                    println!("    {}", outcomes.trim_end().replace('\n', "\n    "));
                    println!("    alone: {}", command_for(behaviour.name));
                    different.push(behaviour.name);
                }
            }
        }
        if group.len() > 1 {
            println!(
                "           {} behaviours in a shared container ({seconds:.1} s)",
                group.len()
            );
        }
    }
    println!(
        "{} behaviours under runc and nacre in {:.0} s: {equal} equal, {allowed} differ as allowed, {} DIFFERENT",
        equal + allowed + different.len(),
        started.elapsed().as_secs_f64(),
        different.len()
    );
    Ok(runner::print_totals(equal + allowed, &different))
}

/// Runs `chosen` under `runtime` only and prints the outcomes; returns the number of errors.
fn run_under(chosen: &[&'static Behaviour], runtime: Runtime) -> usize {
    let mut failed = 0;
    for group in groups(chosen) {
        let started = Instant::now();
        let outcomes = run_group(&group, runtime);
        for (behaviour, outcome) in group.iter().zip(outcomes) {
            println!("--- {}", behaviour.name);
            match outcome {
                Ok(outcome) => print!("{outcome}"),
                Err(error) => {
                    failed += 1;
                    println!("ERROR: {error:#}");
                }
            }
        }
        println!("    ({:.1} s)", started.elapsed().as_secs_f64());
    }
    failed
}
