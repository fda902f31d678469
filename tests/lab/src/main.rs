//! `nacre-lab`: runs a command on a host with working KVM, with Nacre installed and a private containerd: on this
//! machine where its KVM runs Linux, in a VM under software emulation where not. Called by `tests/lab/run`.
//!
//! The same program is the lab's two halves: on the host it decides, builds the VM and passes bytes; inside (`--inside`
//! as the VM's first program, `--inside-direct` as the first of a private PID namespace) it starts containerd and the
//! command. It never prints to standard output: that is the command's.

mod console;
mod direct;
mod host;
mod inside;
mod machine;
mod parts;
mod terminal;
mod tsc;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

/// The exit code that says: the lab failed, not the command.
pub const LAB_FAILED: u8 = 125;

/// Runs a command on a host with working KVM, with Nacre in PATH, containerd at CONTAINERD_ADDRESS and a busybox image.
///
/// The checkout is at the same path, is the working directory, and can be written to under target/. Standard streams and
/// the exit code are the command's; 125 says that the lab itself failed. An interactive shell: tests/lab/run -- bash
#[derive(Debug, Parser)]
#[command(name = "tests/lab/run")]
pub struct Arguments {
    /// Version of containerd: 1.6, 1.7 or 2.1 (the newest 2.x that Debian has).
    #[arg(long, default_value = "1.6")]
    containerd: String,
    /// Shows the VM's console and what the lab does, on standard error.
    #[arg(short, long)]
    verbose: bool,
    /// In a VM, even where this machine's KVM works.
    #[arg(long, conflicts_with = "direct")]
    vm: bool,
    /// On this machine, even where its KVM does not work.
    #[arg(long)]
    direct: bool,
    /// CPUs of the VM; more than 1 has locked up under emulation.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Seconds without a sign of life after which the VM is killed.
    #[arg(long, hide = true, default_value_t = 60)]
    patience: u64,
    /// The checkout, set by tests/lab/run.
    #[arg(long, hide = true, default_value = ".")]
    checkout: PathBuf,
    #[arg(long, hide = true)]
    inside: bool,
    #[arg(long, hide = true)]
    inside_direct: Option<i32>,
    /// The command and its arguments.
    #[arg(last = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.inside {
        inside::vm::main();
    }
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8> {
    if let Some(fd) = arguments.inside_direct {
        return inside::direct::main(fd);
    }
    if arguments.command.is_empty() {
        bail!("no command; usage: tests/lab/run [--containerd VERSION] -- COMMAND…");
    }
    let checkout = std::fs::canonicalize(&arguments.checkout)?;
    let choice = parts::choose(arguments, &checkout)?;
    eprintln!("lab: {}", choice.why);
    if choice.direct {
        direct::run(arguments, &checkout)
    } else {
        host::run(arguments, &checkout)
    }
}
