//! `nacre-vmm`: runs one microVM, either for the shim (`--control-fd`, [`shim_managed`]) or standalone
//! (`--kernel`, [`standalone`]), or checks this host's KVM (`--probe`, [`probe`]). Only the binary knows the
//! command line.

mod standalone;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use nacre_vmm::control::Control;
use nacre_vmm::{probe, process, shim_managed};

/// Runs one microVM on KVM.
///
/// The shim starts it with --control-fd and sends configuration and open files over that socket. Standalone,
/// it takes them from the command line: give at least --kernel (an uncompressed vmlinux built with
/// CONFIG_PVH, as Nacre's build makes it) and --initrd, and --console to see the guest.
///
/// Exit codes when standalone: 0 the guest powered off, 1 it could not be started, 10 it reset itself, 11 its
/// kernel panicked, 12 the VMM failed. With --probe: 0 if this host's KVM runs Linux, 3 if it does not.
#[derive(Debug, Parser)]
#[command(name = "nacre-vmm", version = nacre_protocol::BUILD_ID)]
struct Arguments {
    /// Descriptor of the socket to the shim; the configuration comes from there.
    #[arg(long, value_name = "FD", conflicts_with_all = ["kernel", "probe"])]
    control_fd: Option<i32>,
    /// Boot a tiny test guest that does what Linux does early, and print in one line whether KVM works.
    #[arg(long, conflicts_with = "kernel")]
    probe: bool,
    #[command(flatten)]
    standalone: StandaloneArguments,
}

/// The options of the standalone mode. With `--control-fd` the shim sends all of this.
#[derive(Debug, clap::Args)]
struct StandaloneArguments {
    /// The guest kernel.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["control_fd", "probe"], requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The guest's initramfs (cpio).
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Parameters to append to the kernel command line.
    #[arg(
        long,
        value_name = "PARAMETERS",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Guest memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 512)]
    memory_mib: u32,
    /// Most memory that can be plugged in besides --memory-mib while the guest runs, in MiB, a multiple of 128;
    /// --commands plugs it.
    #[arg(long, value_name = "N")]
    max_plugged_mib: Option<u32>,
    /// Number of vCPUs that are online at boot, 1 to 32.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    /// Number of vCPUs that exist, so that the guest can bring more online later; as many as --vcpus if not
    /// given.
    #[arg(long, value_name = "N")]
    max_vcpus: Option<u8>,
    /// Connect the guest's serial console to this terminal, with all kernel messages.
    #[arg(long)]
    console: bool,
    /// Read commands from standard input while the guest runs, one per line: renew-generation-id gives the VM
    /// a new generation id and notifies the guest, as restoring it from a snapshot would; plug-memory N asks
    /// the guest to have N MiB plugged in besides its memory at boot (--max-plugged-mib); memory prints how
    /// much is; attach-common adds virtio-rng and virtio-balloon, which the guest finds when it scans its PCI
    /// bus again; requests prints how many requests virtio-fs has served, by their kind.
    #[arg(long, conflicts_with = "console")]
    commands: bool,
    /// A directory to share with the guest, which mounts it as virtiofs with the tag "nacre".
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// A tap to connect the guest to, which is created if there is none; may be given several times. The
    /// guest's address is 02:00:00:00:00:NN, where NN counts from 1, unless it is given.
    #[arg(long, value_name = "NAME[,queues=N][,mac=MAC]")]
    tap: Vec<standalone::TapOption>,
    /// As --tap, for a device that the command attach-device adds to the running guest, and the command
    /// detach-device removes.
    #[arg(long, value_name = "NAME[,queues=N][,mac=MAC]", requires = "commands")]
    late_tap: Vec<standalone::TapOption>,
    /// A file or block device that the guest gets as a disk; may be given several times. Its serial number is
    /// disk-N, where N counts from 1. With ro, the guest can't write it; with blocking, io_uring is not used.
    #[arg(long, value_name = "FILE[,ro][,queues=N][,blocking]")]
    disk: Vec<standalone::DiskOption>,
    /// As --disk, for a disk that the command attach-device adds to the running guest after those of
    /// --late-tap. The serial numbers continue those of --disk.
    #[arg(long, value_name = "FILE[,ro][,queues=N][,blocking]", requires = "commands")]
    late_disk: Vec<standalone::DiskOption>,
    /// A Unix socket to create: a client that connects and writes "CONNECT <port>" reaches that vsock port of
    /// the guest.
    #[arg(long, value_name = "PATH")]
    vsock_uds: Option<PathBuf>,
    /// Exit as soon as the guest's agent connects, and print how long that and the steps before took.
    #[arg(long)]
    until_ready: bool,
    /// Once the guest's agent has connected, pause and resume the guest COUNT times and print how long that
    /// took.
    #[arg(long, value_name = "COUNT", conflicts_with = "until_ready")]
    pause_resume: Option<u32>,
    /// Boot a guest that is going to continue elsewhere, save it to this directory, which is created, as soon
    /// as its agent is ready, and exit. With --restore, save the restored guest at once, before it runs.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["commands", "console", "until_ready", "pause_resume", "share", "tap", "late_tap", "disk",
            "late_disk", "max_plugged_mib"]
    )]
    save: Option<PathBuf>,
    /// Continue a guest that --save has saved to this directory, instead of booting one. Refused if the
    /// snapshot was made by another build of nacre-vmm, from another --kernel or --initrd, or on a host that
    /// differs. --share is what the guest's shared directory is from then on.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["memory_mib", "vcpus", "max_vcpus", "cmdline", "console", "tap", "disk",
            "max_plugged_mib"]
    )]
    restore: Option<PathBuf>,
    /// Print the number of VM exits of each kind before exiting.
    #[arg(long)]
    exits: bool,
    /// Run without namespaces and seccomp filters, for debugging or without root.
    #[arg(long)]
    no_jail: bool,
    /// Allow system calls that the seccomp filters forbid, and have the host's kernel log them (dmesg:
    /// type=1326).
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
        None => standalone::run(&arguments.standalone).unwrap_or_else(|error| {
            eprintln!("nacre-vmm: {error:#}");
            1
        }),
    };
    process::exit_now(code)
}
