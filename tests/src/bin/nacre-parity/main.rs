//! Runs each behaviour under runc and under Nacre and tells a row each: equal, different as listed, or DIFFERENT with
//! both outputs. Run by `tests/lab/run`, as the end-to-end tests are.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use nacre_tests::containerd::{Runtime, ctr};
use nacre_tests::parity::{Behaviour, Verdict, behaviours, compare, groups, run_group};

/// Compares Nacre with runc, behaviour by behaviour, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Names the behaviours and what each covers, and runs none.
    #[arg(long)]
    list: bool,
    /// Runs one side alone and shows what is seen.
    #[arg(long)]
    only: Option<Side>,
    /// Only behaviours whose names contain one of these.
    names: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
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
        Some(Side::Nacre) => show(&chosen, Runtime::Nacre),
        Some(Side::Runc) => show(&chosen, Runtime::Runc),
        None => both(&chosen),
    };
    ctr::remove_leftovers();
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Both sides, a group at a time; gives the number of failures.
fn both(chosen: &[&'static Behaviour]) -> usize {
    let started = Instant::now();
    let (mut equal, mut listed, mut different) = (0, 0, Vec::new());
    for group in groups(chosen) {
        let runc = run_group(&group, Runtime::Runc);
        let nacre = run_group(&group, Runtime::Nacre);
        for (behaviour, (runc, nacre)) in group.iter().zip(runc.iter().zip(&nacre)) {
            match compare(behaviour, runc, nacre) {
                Verdict::Equal => {
                    equal += 1;
                    println!("equal      {}", behaviour.name);
                }
                Verdict::AsListed(because) => {
                    listed += 1;
                    println!("as listed  {} ({because})", behaviour.name);
                }
                Verdict::Different(how) => {
                    println!("DIFFERENT  {}", behaviour.name);
                    println!("    {}", how.trim_end().replace('\n', "\n    "));
                    different.push(behaviour.name);
                }
            }
        }
    }
    println!(
        "{} behaviours under runc and nacre in {:.0} s: {equal} equal, {listed} different as listed, {} DIFFERENT",
        chosen.len(),
        started.elapsed().as_secs_f64(),
        different.len()
    );
    for name in &different {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", equal + listed, different.len());
    different.len()
}

/// One side, as it is.
fn show(chosen: &[&'static Behaviour], runtime: Runtime) -> usize {
    let mut failed = 0;
    for group in groups(chosen) {
        let started = Instant::now();
        let seen = run_group(&group, runtime);
        for (behaviour, seen) in group.iter().zip(seen) {
            println!("--- {}", behaviour.name);
            match seen {
                Ok(seen) => print!("{seen}"),
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
