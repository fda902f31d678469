//! `nacre-rootfs-builder`: writes the initramfs that a guest boots: the static agent as /init, a console for it, and the
//! directories it mounts on. Called by `make`. The same agent gives the same bytes; nothing of the building machine is in
//! them. It never compresses: a kernel under emulation would take seconds to undo that.

mod archive;
mod program;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

/// Builds the initramfs that Nacre's guests boot.
#[derive(Debug, Parser)]
struct Arguments {
    /// The agent: a static x86-64 program.
    #[arg(long)]
    agent: PathBuf,
    /// Where the initramfs is written; replaced at once, never half.
    #[arg(long)]
    output: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-rootfs-builder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let agent =
        fs::read(&arguments.agent).with_context(|| format!("reading {}", arguments.agent.display()))?;
    program::check(&agent)
        .with_context(|| format!("{} can't be a guest's agent", arguments.agent.display()))?;
    let bytes = archive::build(&agent).context("building the archive")?;
    let mut unfinished = arguments.output.clone().into_os_string();
    unfinished.push(".new");
    fs::write(&unfinished, &bytes)
        .with_context(|| format!("writing {}", PathBuf::from(&unfinished).display()))?;
    fs::rename(&unfinished, &arguments.output)
        .with_context(|| format!("moving the archive to {}", arguments.output.display()))?;
    println!(
        "{}: {} bytes, of which the agent {}",
        arguments.output.display(),
        bytes.len(),
        agent.len()
    );
    Ok(())
}
