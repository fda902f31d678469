//! `nacre`, the operator's command: checks whether a host can run pods, lists pods, shows how a pod started
//! and why it failed. It reads what shims leave in the state directory and asks them for counters. It changes
//! nothing but templates.

mod doctor;
mod inspect;
mod overhead;
mod pods;
mod process_memory;
mod ps;
mod template;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Operates Nacre, the containerd runtime that runs every pod in its own microVM.
#[derive(Parser)]
#[command(name = "nacre", version = nacre_protocol::BUILD_ID)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Directory in which shims keep the state of their pods.
    #[arg(long, global = true, hide = true, default_value = nacre_protocol::state::STATE_ROOT)]
    state_root: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Check whether this host can run Nacre's pods, with a fix for each failed check.
    ///
    /// The last check boots a tiny guest that executes what Linux executes early in its boot. The exit code
    /// is 0 if no check failed, else 1.
    Doctor(doctor::Options),
    /// Show a pod's state, the timeline of its start, and why it failed.
    Inspect(inspect::Options),
    /// List the pods on this host.
    Ps {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure what the running pods take besides their containers, for a RuntimeClass of Kubernetes.
    Overhead(overhead::Options),
    /// List, make or remove templates: the booted guests from which pods continue.
    #[command(subcommand)]
    Template(template::Command),
    /// List the pods that failed, newest first. `nacre inspect ID` shows one of them.
    Failures {
        /// Print JSON.
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
        Command::Overhead(options) => overhead::run(root, options)?,
        Command::Template(command) => template::run(root, command)?,
        Command::Ps { json } => ps::pods(root, *json)?,
        Command::Failures { json } => ps::failures(root, *json)?,
    };
    text::print(&output)?;
    Ok(ExitCode::SUCCESS)
}
