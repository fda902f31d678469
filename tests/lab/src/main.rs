//! `nacre-lab`: runs a command on a host with working KVM, with Nacre installed and a private containerd. The
//! host is this machine if its KVM runs Linux, otherwise a VM under software emulation. Called by
//! `tests/lab/run`.
//!
//! The program has two roles, and with `--cri` it is also a CNI plugin (`inside::cni`). On this machine it decides where the command runs, starts the VM and copies the
//! standard streams. Where the command runs (`--inside`: PID 1 of the VM, `--inside-direct`: first process of
//! a private PID namespace) it starts containerd and the command. Standard output belongs to the command:
//! only `--where` prints to it.

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

use crate::wire::Snapshotter;

/// Exit code if the lab failed; the command never gets it from the lab otherwise.
pub const LAB_FAILED: u8 = 125;

/// Runs a command on a host with working KVM, with Nacre in PATH, containerd at CONTAINERD_ADDRESS and a
/// busybox image.
///
/// The checkout has the same path there, is the working directory, and is writable under target/. Standard
/// streams and the exit code are the command's; exit code 125 means that the lab itself failed. For a shell:
/// tests/lab/run -- bash
#[derive(Debug, Parser)]
#[command(name = "tests/lab/run")]
pub struct Arguments {
    /// Version of containerd: 1.6, 1.7, 2.1 (the newest 2.x in Debian) or 2.4 (built with Go).
    #[arg(long, default_value = "1.6")]
    containerd: String,
    /// Enable containerd's CRI plugin, with the runtime handlers runc and nacre and a CNI network.
    #[arg(long)]
    cri: bool,
    /// Like --cri, and import an image with redis, nginx, Python and PostgreSQL (140 MB).
    #[arg(long)]
    software: bool,
    /// Snapshotter that `ctr` uses, instead of containerd's default: blockfile (containerd 1.7 and later) or
    /// erofs (2.1 and later).
    #[arg(long, value_enum, conflicts_with_all = ["cri", "software"])]
    snapshotter: Option<Snapshotter>,
    /// Keep containerd's files in an ext4 file system, whose mounts can have id maps, instead of a tmpfs.
    #[arg(long)]
    ext4: bool,
    /// Print where a command would run, `vm` or `direct`, and run nothing.
    #[arg(long = "where")]
    place: bool,
    /// Name of this lab among several side by side: containerd's log is kept as
    /// target/lab/containerd-NAME.log.
    #[arg(long)]
    name: Option<String>,
    /// Print the VM's console on standard error.
    #[arg(short, long)]
    verbose: bool,
    /// Use a VM, even if this machine's KVM works.
    #[arg(long, conflicts_with = "direct")]
    vm: bool,
    /// Use this machine, even if its KVM does not work.
    #[arg(long)]
    direct: bool,
    /// CPUs of the VM. With more than 1, VMs have locked up under emulation.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Seconds without a heartbeat after which the VM is killed.
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
    if std::env::var_os("CNI_COMMAND").is_some() {
        return inside::cni::main();
    }
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
    if arguments.command.is_empty() && !arguments.place {
        bail!("no command; usage: tests/lab/run [--containerd VERSION] -- COMMAND…");
    }
    let checkout = std::fs::canonicalize(&arguments.checkout)?;
    let choice = parts::choose(arguments, &checkout)?;
    eprintln!("lab: {}", choice.why);
    if arguments.place {
        println!("{}", if choice.direct { "direct" } else { "vm" });
        return Ok(0);
    }
    if choice.direct {
        direct::run(arguments, &checkout)
    } else {
        host::run(arguments, &checkout)
    }
}
