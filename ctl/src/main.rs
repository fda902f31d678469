//! `nacre`, the operator's command: is this host fit, which pods run, how did one start, why did it die. It reads
//! what shims leave in the state directory and never changes anything.

mod doctor;
mod inspect;
mod pods;
mod ps;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Looks after Nacre, the containerd runtime that runs every pod in its own microVM.
#[derive(Parser)]
#[command(name = "nacre", version = nacre_protocol::BUILD_ID)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Where shims keep the state of their pods.
    #[arg(long, global = true, hide = true, default_value = nacre_protocol::state::STATE_ROOT)]
    state_root: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Checks whether this host runs Nacre's pods, line by line, with a fix for each failure.
    ///
    /// Ends with the boot of a tiny test guest that does what Linux does early. Exit code 0 where nothing failed,
    /// else 1.
    Doctor(doctor::Options),
    /// Shows how a pod started, in what state it is, and why it died.
    Inspect(inspect::Options),
    /// Lists the pods that run on this host.
    Ps {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists the pods that failed, newest first; `nacre inspect ID` shows one.
    Failures {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nacre: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = &arguments.state_root;
    let output = match &arguments.command {
        Command::Doctor(options) => return doctor::run(options),
        Command::Inspect(options) => inspect::run(root, options)?,
        Command::Ps { json } => ps::pods(root, *json)?,
        Command::Failures { json } => ps::failures(root, *json)?,
    };
    text::print(&output)?;
    Ok(ExitCode::SUCCESS)
}
