//! Runs the end-to-end tests, with real containerd and real guests. `tests/lab/run` starts it on a host with
//! working KVM and sets CONTAINERD_ADDRESS and PATH. Tests run one at a time, and each must leave nothing
//! behind on the host.
//!
//! `nacre-e2e [--core] [--vcpus N] [--long] [--list] [NAME…]` runs all tests, the core ones, or those named: by a
//! whole name, or by a part of it.

mod bad_specs;
mod calls;
mod clocks;
mod crash;
mod disks;
mod events;
mod execs;
mod faults;
mod files;
mod forward;
mod hostile;
mod network;
mod operator;
mod pods;
mod runs;
mod setup;
mod sizes;
mod strangers;
mod streams;
mod templates;
mod volumes;
mod wedged;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use nacre_tests::installation::{Config, has_templates};
use nacre_tests::runner;
use nacre_tests::selection::Selection;

/// An end-to-end test.
struct Test {
    /// What it shows; `nacre-e2e NAME` selects by it.
    name: &'static str,
    /// Whether it also runs under other versions of containerd than the distribution's.
    core: bool,
    /// Whether it takes minutes: it runs only with --long, or by its whole name.
    long: bool,
    run: fn() -> Result<()>,
}

const fn test(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test {
        name,
        core: false,
        long: false,
        run,
    }
}

const fn core(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test {
        name,
        core: true,
        long: false,
        run,
    }
}

const fn long(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test {
        name,
        core: false,
        long: true,
        run,
    }
}

/// End-to-end tests of Nacre, under the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Run only the tests that must pass under every version of containerd.
    #[arg(long)]
    core: bool,
    /// Give each guest N vCPUs by config.toml, which must not exist. Only with --core, since other tests
    /// write a config.toml themselves.
    #[arg(long, value_name = "N", requires = "core")]
    vcpus: Option<u8>,
    /// Also run the tests that take minutes.
    #[arg(long)]
    long: bool,
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
        forward::TESTS,
        network::TESTS,
        streams::TESTS,
        strangers::TESTS,
        templates::TESTS,
        volumes::TESTS,
        disks::TESTS,
        execs::TESTS,
        events::TESTS,
        calls::TESTS,
        clocks::TESTS,
        pods::TESTS,
        sizes::TESTS,
        bad_specs::TESTS,
        faults::TESTS,
        crash::TESTS,
        wedged::TESTS,
        operator::TESTS,
        hostile::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|test| Test { ..*test })
    .collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let all: Vec<&str> = tests().iter().map(|test| test.name).collect();
    // Those of templates have the word in their names. Without an installation all tests fail, and say so.
    let may_use_templates = arguments.list || has_templates().unwrap_or(true);
    let chosen: Vec<Test> = tests()
        .into_iter()
        .filter(|test| test.core || !arguments.core)
        .filter(|test| may_use_templates || !test.name.contains("template"))
        .filter(|test| arguments.long || !test.long || arguments.selection.names_one(test.name))
        .filter(|test| arguments.selection.selects(test.name, &all))
        .collect();
    if arguments.list {
        for test in &chosen {
            println!("{}", test.name);
        }
        return ExitCode::SUCCESS;
    }
    runner::exit_code("nacre-e2e", &run(&chosen, &arguments))
}

fn run(tests: &[Test], arguments: &Arguments) -> Result<usize> {
    println!("containerd: {}", setup::containerd_version()?);
    // Removed when this returns.
    let _config = match arguments.vcpus {
        Some(vcpus) => Some(Config::with(&format!("vcpus = {vcpus}\n"))?),
        None => None,
    };
    if arguments.vcpus.is_some() {
        // As the lab does for its own configuration.
        operator::nacre(&["template", "build"])?;
    }
    let names: Vec<&str> = tests.iter().map(|test| test.name).collect();
    runner::run_all(&names, &arguments.selection, |index| (tests[index].run)())
}
