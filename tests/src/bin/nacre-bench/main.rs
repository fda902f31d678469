//! The benchmark: Nacre beside runc in one run, on a host with working KVM (`tests/lab/run -- nacre-bench`), under
//! the containerd at CONTAINERD_ADDRESS. Shows its progress on standard error, the results on standard output, and
//! leaves `results.json` and `index.html` under `target/bench`.
//!
//! Times under emulation mean something only as ratios within one run, so the two runtimes take turns.

mod containers;
mod page;
mod pairs;
mod results;
mod sizes;
mod start;
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use results::Results;

/// Measures Nacre beside runc: start to end of a container, of an exec, the steps of a start, sizes.
#[derive(Parser)]
struct Arguments {
    /// How many pairs of runs, and of execs.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// How many starts are looked at step by step.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.pairs > 0 && arguments.starts > 0,
        "--pairs and --starts must be at least 1"
    );
    std::fs::create_dir_all(&arguments.output)
        .with_context(|| format!("making {}", arguments.output.display()))?;
    sizes::warn_of_unoptimised()?;
    let mut results = Results::default();
    let pairs = [pairs::starts(arguments.pairs)?, pairs::execs(arguments.pairs)?];
    for measured in &pairs {
        measured.report(&mut results);
    }
    let starts = start::measure(arguments.starts)?;
    starts.report(&mut results)?;
    sizes::measure(&mut results)?;
    let json = arguments.output.join("results.json");
    std::fs::write(&json, results.json()?).with_context(|| format!("writing {}", json.display()))?;
    let html = arguments.output.join("index.html");
    std::fs::write(&html, page::html(&results, &pairs, &starts))
        .with_context(|| format!("writing {}", html.display()))?;
    println!("{}", results.table());
    println!("{}\n{}", json.display(), html.display());
    Ok(())
}
