//! The benchmark: Nacre, runc and a shim that runs nothing, in one run under the containerd at
//! CONTAINERD_ADDRESS, on a host with working KVM (`tests/lab/run -- target/debug/nacre-bench`). Prints
//! progress on standard error and the results on standard output; writes `results.json` and `index.html`
//! under `target/bench`.
//!
//! Times under emulation mean something only as ratios within one run, so the runtimes take turns.

mod containers;
mod installed;
mod memory;
mod page;
mod results;
mod rounds;
mod runtimes;
mod start;
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use results::Results;
use runtimes::MeasuredRuntimes;

/// Measures Nacre beside runc: start and end of a container, an exec, the steps of a start, memory, sizes.
#[derive(Parser)]
struct Arguments {
    /// How many rounds of containers, and of execs.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// How many starts are measured step by step.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Also measure the build of Nacre installed at this prefix, and compare the two.
    #[arg(long, value_name = "PREFIX")]
    other: Option<PathBuf>,
    /// Directory of results.json and index.html.
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
        .with_context(|| format!("creating {}", arguments.output.display()))?;
    let runtimes = MeasuredRuntimes::find(arguments.other.as_deref())?;
    installed::warn_if_unoptimised(&runtimes)?;
    let mut results = Results::default();
    let measured = [
        rounds::starts(&runtimes, arguments.pairs)?,
        rounds::execs(&runtimes, arguments.pairs)?,
    ];
    for rounds in &measured {
        rounds.report(&mut results);
    }
    let starts = start::measure(&runtimes, arguments.starts)?;
    starts.report(&mut results)?;
    memory::measure(&runtimes, &mut results)?;
    installed::measure(&runtimes, &mut results)?;
    let json = arguments.output.join("results.json");
    std::fs::write(&json, results.json()?).with_context(|| format!("writing {}", json.display()))?;
    let html = arguments.output.join("index.html");
    std::fs::write(&html, page::html(&results, &measured, &starts))
        .with_context(|| format!("writing {}", html.display()))?;
    println!("{}", results.table());
    println!("{}\n{}", json.display(), html.display());
    Ok(())
}
