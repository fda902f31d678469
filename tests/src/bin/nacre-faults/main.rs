//! Ends each program at each fault point ([`nacre_protocol::fault`]) in a container's life, and checks that containerd
//! has an error with a reason or an end within 15 s, that nothing is left on the host, and that a container of the same
//! id starts again. Prints a line of the table of points and outcomes for each. Needs programs with fault points: `make faults` installs
//! them in target/nacre-faults, and NACRE_PREFIX=nacre-faults has `tests/lab/run` use them.
//!
//! `nacre-faults [--core] [--list] [NAME…]` runs all rows, the core ones, or those named.

mod life;
mod rows;

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nacre_protocol::fault::{ARMED_FILE, Program};
use nacre_tests::containerd::ctr::{Run, fresh_id, output};
use nacre_tests::containerd::restart::Containerd;
use nacre_tests::installation::{Config, prefix};
use nacre_tests::leaks::Snapshot;
use nacre_tests::runner;
use nacre_tests::selection::Selection;
use serde_json::Value;

use life::{LIMIT, Outcome};
use rows::{Row, rows};

/// Ends programs at fault points, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Run only the rows of `make test`.
    #[arg(long)]
    core: bool,
    /// Print the rows without running them.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    selection: Selection,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let names: Vec<String> = rows().iter().map(Row::name).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let chosen: Vec<Row> = rows()
        .into_iter()
        .filter(|row| row.core || !arguments.core)
        .filter(|row| arguments.selection.selects(&row.name(), &all))
        .collect();
    if arguments.list {
        for row in &chosen {
            println!("{}", row.name());
        }
        return ExitCode::SUCCESS;
    }
    runner::exit_code("nacre-faults", &run(&chosen, &arguments.selection))
}

fn run(rows: &[Row], selection: &Selection) -> Result<usize> {
    check_build()?;
    let names: Vec<String> = rows.iter().map(Row::name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    runner::run_all(&names, selection, |index| {
        let outcome = run_row(&rows[index])?;
        println!("{}", line(&rows[index], &outcome));
        Ok(())
    })
}

/// Programs without fault points would pass none of the rows, each after its deadline.
fn check_build() -> Result<()> {
    let shim = prefix()?.join("bin/containerd-shim-nacre-v2");
    let program = fs::read(&shim).with_context(|| shim.display().to_string())?;
    ensure!(
        program
            .windows(ARMED_FILE.len())
            .any(|part| part == ARMED_FILE.as_bytes()),
        "{} has no fault points: run `make faults`, and this with NACRE_PREFIX=nacre-faults tests/lab/run",
        shim.display()
    );
    Ok(())
}

fn line(row: &Row, outcome: &Outcome) -> String {
    let text: String = outcome.text.chars().take(160).collect();
    format!(
        "| {} | {} | {} | {:.1} s | {} |",
        row.point.name(),
        row.victim_name(),
        outcome.call,
        outcome.took.as_secs_f64(),
        text.replace('|', "\\|")
    )
}

/// Disarms when it is dropped, however the test ended.
struct Armed {
    _config: Option<Config>,
}

impl Armed {
    fn new(row: &Row, containerd: &Containerd) -> Result<Self> {
        let _config = row.config().map(|toml| Config::with(&toml)).transpose()?;
        if let Some(line) = row.line(containerd.pid) {
            fs::write(ARMED_FILE, line).context(ARMED_FILE)?;
        }
        Ok(Self { _config })
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        // It is gone if the point was reached.
        let _ = fs::remove_file(ARMED_FILE);
    }
}

/// Compares the host with `before` until they are equal, for [`LIMIT`] at most: containerd runs `delete` when it likes.
fn nothing_left(before: &Snapshot) -> Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match before.compare(left) {
            Err(error) if left.is_zero() => return Err(error.context("before the next container")),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
}

/// Why the pod died, as `nacre inspect` tells; null if it did not.
fn failure(id: &str) -> Result<Value> {
    let mut inspect = Command::new("nacre");
    inspect.args(["inspect", "--json", id]);
    let inspected: Value = serde_json::from_str(&output(inspect)?.success()?)?;
    Ok(inspected["failure"].clone())
}

fn run_row(row: &Row) -> Result<Outcome> {
    let before = Snapshot::take()?;
    let containerd = Containerd::running()?;
    let id = fresh_id(&format!(
        "fault-{}",
        row.name().replace(": ", "-").replace([' ', '.'], "-")
    ));
    let armed = Armed::new(row, &containerd)?;
    let outcome = life::live(&id, &containerd, row.is_clean_up())?;
    // A point of the agent is armed by the guest's command line. Where it was reached, the guest has died.
    let is_reached = match row.point.program() {
        Program::Agent => failure(&id)?.is_object(),
        Program::Shim | Program::Vmm => !Row::is_armed(),
    };
    ensure!(is_reached, "{} was not reached: {outcome:?}", row.name());
    drop(armed);
    if row.is_clean_up() {
        // containerd calls `delete` once. What its death leaves goes when containerd starts again.
        containerd.restart()?;
    }
    nothing_left(&before)?;
    let begun = Instant::now();
    let again = Run {
        command: &["echo", "again"],
        ..Run::default()
    };
    let text = again.output(&id)?.success().context("the same id again")?;
    ensure!(
        text == "again\n",
        "the same id again, {:?}: {text:?}",
        begun.elapsed()
    );
    Ok(outcome)
}
