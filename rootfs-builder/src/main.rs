//! `nacre-rootfs-builder`: writes the initramfs that a guest boots. It contains the static agent as /init,
//! /dev/console, and the directories that the agent mounts on. Called by `make`. Builds are reproducible: the
//! archive depends only on the agent. It is never compressed, because a kernel under emulation would take
//! seconds to decompress it.

mod archive;
mod program;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

/// Build the initramfs that Nacre's guests boot.
#[derive(Debug, Parser)]
struct Arguments {
    /// The agent, a statically linked x86-64 executable.
    #[arg(long)]
    agent: PathBuf,
    /// The file to write. It is replaced atomically.
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
        .with_context(|| format!("{} can't be used as the guest's agent", arguments.agent.display()))?;
    let bytes = archive::build(&agent).context("building the cpio archive")?;
    let mut unfinished = arguments.output.clone().into_os_string();
    unfinished.push(".new");
    fs::write(&unfinished, &bytes)
        .with_context(|| format!("writing {}", PathBuf::from(&unfinished).display()))?;
    fs::rename(&unfinished, &arguments.output)
        .with_context(|| format!("renaming the new archive to {}", arguments.output.display()))?;
    println!(
        "wrote {}: {} bytes, {} of them the agent",
        arguments.output.display(),
        bytes.len(),
        agent.len()
    );
    Ok(())
}
