//! `nacre-vmm`: runs one microVM, for the shim (`--control-fd`, [`nacre_vmm::shim_managed`]) or by hand (`--kernel`, [`by_hand`]), or
//! tells whether it could (`--probe`). Only the binary knows the command line and the exit codes.

mod by_hand;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use nacre_vmm::control::Control;
use nacre_vmm::{probe, process, shim_managed};

/// Runs one microVM on KVM.
///
/// The shim starts it with --control-fd and sends configuration and open files over that socket. By hand it takes
/// them from the command line: give at least --kernel (an uncompressed vmlinux built with CONFIG_PVH, as Nacre's
/// build makes it) and --initrd, and --console to see the guest.
///
/// Exit codes by hand: 0 the guest powered off, 1 it could not be started, 10 it reset itself, 11 its kernel
/// panicked, 12 the VMM failed. With --probe: 0 KVM runs Linux here, 3 it can't.
#[derive(Debug, Parser)]
#[command(name = "nacre-vmm", version = nacre_protocol::BUILD_ID)]
struct Arguments {
    /// The socket to the shim; everything else comes from there.
    #[arg(long, value_name = "FD", conflicts_with_all = ["kernel", "probe"])]
    control_fd: Option<i32>,
    /// Boot a tiny test guest that does what Linux does early, and tell in one line whether KVM works.
    #[arg(long, conflicts_with = "kernel")]
    probe: bool,
    #[command(flatten)]
    by_hand: ByHand,
}

/// What `--control-fd` brings otherwise.
#[derive(Debug, clap::Args)]
struct ByHand {
    /// The guest kernel.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["control_fd", "probe"], requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The guest's initramfs (cpio).
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words to add to the kernel command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Guest memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 512)]
    memory_mib: u32,
    /// Number of vCPUs, 1 to 32.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    /// Connect the guest's serial console to this terminal, with all of the kernel's messages.
    #[arg(long)]
    console: bool,
    /// A directory for the guest, which mounts it as virtiofs with the tag "nacre".
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// A socket to make: who connects and writes "CONNECT <port>" reaches that vsock port of the guest.
    #[arg(long, value_name = "PATH")]
    vsock_uds: Option<PathBuf>,
    /// End as soon as the guest's agent dials in, and print how long that and the steps before took.
    #[arg(long)]
    until_ready: bool,
    /// Print the VM's exits by kind when it ends.
    #[arg(long)]
    exits: bool,
    /// Run without namespaces and system call filters, for debugging or without root.
    #[arg(long)]
    no_jail: bool,
    /// Let system calls that the filters forbid go through, and have the host's kernel log them (dmesg: type=1326).
    #[arg(long, conflicts_with = "no_jail")]
    log_calls: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.probe {
        let report = probe::run(Path::new("/dev/kvm"));
        println!("{report}");
        return ExitCode::from(report.exit_code());
    }
    let code = match arguments.control_fd {
        Some(fd) => shim_managed::run(&Control::new(fd)),
        None => by_hand::run(&arguments.by_hand).unwrap_or_else(|error| {
            eprintln!("nacre-vmm: {error:#}");
            1
        }),
    };
    process::exit_now(code)
}
