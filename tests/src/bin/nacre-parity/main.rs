//! Runs each behaviour under runc and under Nacre and tells a row each: equal, different as listed, or DIFFERENT with
//! both outputs. Run by `tests/lab/run`, as the end-to-end tests are.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use nacre_tests::containerd::{Runtime, ctr};
use nacre_tests::parity::{Behaviour, Verdict, behaviours, compare, groups, run_group};
use nacre_tests::selection::{Selection, command_for};

/// Compares Nacre with runc, behaviour by behaviour, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Names the behaviours and what each covers, and runs none.
    #[arg(long)]
    list: bool,
    /// Runs one side alone and shows what is seen.
    #[arg(long)]
    only: Option<Side>,
    #[command(flatten)]
    selection: Selection,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    Nacre,
    Runc,
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
        Some(Side::Nacre) => Ok(show(&chosen, Runtime::Nacre)),
        Some(Side::Runc) => Ok(show(&chosen, Runtime::Runc)),
        None => both(&chosen, &arguments.selection),
    };
    ctr::remove_leftovers();
    match failed {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nacre-parity: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Both sides, a group at a time, of the groups that no other run has taken. Returns the number of failures.
fn both(chosen: &[&'static Behaviour], selection: &Selection) -> Result<usize> {
    let started = Instant::now();
    let (mut equal, mut listed, mut different) = (0, 0, Vec::new());
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
            match compare(behaviour, runc, nacre) {
                Verdict::Equal => {
                    equal += 1;
                    println!("equal      {}{took}", behaviour.name);
                }
                Verdict::AsListed(because) => {
                    listed += 1;
                    println!("as listed  {} ({because}){took}", behaviour.name);
                }
                Verdict::Different(how) => {
                    println!("DIFFERENT  {}{took}", behaviour.name);
                    println!("    {}", how.trim_end().replace('\n', "\n    "));
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
        "{} behaviours under runc and nacre in {:.0} s: {equal} equal, {listed} different as listed, {} DIFFERENT",
        equal + listed + different.len(),
        started.elapsed().as_secs_f64(),
        different.len()
    );
    for name in &different {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", equal + listed, different.len());
    Ok(different.len())
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
