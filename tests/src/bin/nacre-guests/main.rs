//! Runs the tests of real guests under standalone `nacre-vmm`, on a host with working KVM (`tests/lab/run`),
//! one at a time. The tests are in `nacre_tests::guests`; each must leave nothing behind on the host.
//!
//! `nacre-guests [--list] [NAME…]` runs all tests, or those named: by a whole name, or by a part of it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use nacre_tests::guests::{Build, Test, tests};
use nacre_tests::selection::Selection;
use nacre_tests::{installation, runner};

/// Tests of real guests, with the `nacre-vmm` and the guest kernel that are installed.
#[derive(Parser)]
struct Arguments {
    /// Print the tests without running them.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    selection: Selection,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let all: Vec<&str> = tests().iter().map(|test| test.name).collect();
    let chosen: Vec<Test> = tests()
        .into_iter()
        .filter(|test| arguments.selection.selects(test.name, &all))
        .collect();
    if arguments.list {
        for test in &chosen {
            println!("{}", test.name);
        }
        return ExitCode::SUCCESS;
    }
    runner::exit_code("nacre-guests", &run(&chosen, &arguments.selection))
}

fn run(tests: &[Test], selection: &Selection) -> Result<usize> {
    let build = Build::at(&installation::prefix()?)?;
    let names: Vec<&str> = tests.iter().map(|test| test.name).collect();
    runner::run_all(&names, selection, |index| (tests[index].run)(&build))
}
