//! Runs each behaviour under runc and under Nacre and prints one row for each: equal, allowed, or DIFFERENT
//! with both outcomes. Run by `tests/lab/run`, like the end-to-end tests.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use nacre_tests::containerd::{Runtime, ctr};
use nacre_tests::parity::{Behaviour, Verdict, behaviours, compare, groups, run_group};

/// Compares Nacre with runc, behaviour by behaviour, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Print the behaviours and what each covers, without running them.
    #[arg(long)]
    list: bool,
    /// Run under one runtime only and print the outcomes.
    #[arg(long)]
    only: Option<OnlyRuntime>,
    /// Run only behaviours whose names contain one of these.
    names: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnlyRuntime {
    Nacre,
    Runc,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen: Vec<&'static Behaviour> = behaviours()
        .into_iter()
        .filter(|behaviour| {
            arguments.names.is_empty() || arguments.names.iter().any(|name| behaviour.name.contains(name))
        })
        .collect();
    if arguments.list {
        for behaviour in &chosen {
            println!("{}\t{}", behaviour.name, behaviour.covers.join(" "));
        }
        return ExitCode::SUCCESS;
    }
    let failed = match arguments.only {
        Some(OnlyRuntime::Nacre) => run_under(&chosen, Runtime::Nacre),
        Some(OnlyRuntime::Runc) => run_under(&chosen, Runtime::Runc),
        None => compare_all(&chosen),
    };
    ctr::remove_leftovers();
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs `chosen` group by group under both runtimes and prints the verdicts; returns the number of failures.
fn compare_all(chosen: &[&'static Behaviour]) -> usize {
    let started = Instant::now();
    let (mut equal, mut allowed, mut different) = (0, 0, Vec::new());
    for group in groups(chosen) {
        let runc = run_group(&group, Runtime::Runc);
        let nacre = run_group(&group, Runtime::Nacre);
        for (behaviour, (runc, nacre)) in group.iter().zip(runc.iter().zip(&nacre)) {
            match compare(behaviour, runc, nacre) {
                Verdict::Equal => {
                    equal += 1;
                    println!("equal      {}", behaviour.name);
                }
                Verdict::Allowed(reason) => {
                    allowed += 1;
                    println!("allowed    {} ({reason})", behaviour.name);
                }
                Verdict::Different(outcomes) => {
                    println!("DIFFERENT  {}", behaviour.name);
                    println!("    {}", outcomes.trim_end().replace('\n', "\n    "));
                    different.push(behaviour.name);
                }
            }
        }
    }
    println!(
        "{} behaviours under runc and nacre in {:.0} s: {equal} equal, {allowed} differ as allowed, {} DIFFERENT",
        chosen.len(),
        started.elapsed().as_secs_f64(),
        different.len()
    );
    for name in &different {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", equal + allowed, different.len());
    different.len()
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
