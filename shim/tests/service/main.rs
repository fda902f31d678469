//! Tests of the built shim from `start` to `delete`, by the ttrpc calls that containerd makes. VMM and agent
//! are test doubles: this program, if it is started as `nacre-vmm --control-fd 3`, or with `--save`. Needs root, for namespaces
//! and mounts, and /dev/kvm, which the shim opens; no guest is run.
#![allow(missing_docs, reason = "a test")]

mod bootstrap;
mod codes;
mod crowds;
mod execs;
mod failures;
mod fake_agent;
mod fake_memory;
mod fake_process;
mod fake_vmm;
mod hooks;
mod hung;
mod lives;
mod logs;
mod pod;
mod pods;
mod remote;
mod sandboxes;
mod sizes;
mod tasks;
mod templates;

use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A directory that every shim inherits a descriptor of.
const LEAKED: &str = "/etc";

/// A test's name and function.
type Case = (
    &'static str,
    fn() -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>,
);

/// Lists the tests of a module, named after their functions.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[Case] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "--control-fd") {
        fake_vmm::main();
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|word| word == "--save") {
        fake_vmm::save(&arguments);
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: these tests need root and /dev/kvm");
        return ExitCode::SUCCESS;
    }
    // Inherited by every shim, which must not keep it.
    let leaked = nix::fcntl::open(LEAKED, nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty());
    std::mem::forget(leaked.unwrap());
    let names: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = [
        lives::ALL,
        pods::ALL,
        execs::ALL,
        crowds::ALL,
        tasks::ALL,
        hooks::ALL,
        codes::ALL,
        failures::ALL,
        hung::ALL,
        logs::ALL,
        sandboxes::ALL,
        bootstrap::ALL,
        sizes::ALL,
        templates::ALL,
    ]
    .into_iter()
    .flatten()
    .filter(|(name, _)| names.is_empty() || names.iter().any(|word| name.contains(*word)));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in chosen {
        let begun = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let outcome = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test()).await });
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within 60 s")));
        match outcome {
            Ok(()) => passed += 1,
            Err(_) => failed.push(name),
        }
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({} ms)", begun.elapsed().as_millis());
        if let Err(error) = outcome {
            println!("    {}", format!("{error:#}").replace('\n', "\n    "));
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
