//! Checks of KVM: the device, its capabilities, and a boot of a probe guest. Called by `nacre doctor`.

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use nacre_vmm::probe;

use super::Check;

const DEVICE: &str = "/dev/kvm";
/// The capabilities that the VMM requires.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::SplitIrqchip, "SPLIT_IRQCHIP"),
    (Cap::UserMemory, "USER_MEMORY"),
    (Cap::SetTssAddr, "SET_TSS_ADDR"),
    (Cap::ExtCpuid, "EXT_CPUID"),
    (Cap::MpState, "MP_STATE"),
    (Cap::SignalMsi, "SIGNAL_MSI"),
    (Cap::ReadonlyMem, "READONLY_MEM"),
    (Cap::Ioeventfd, "IOEVENTFD"),
    (Cap::ImmediateExit, "IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "TSC_DEADLINE_TIMER"),
];

/// The group's checks.
pub fn checks() -> Vec<Check> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let reason = io::Error::from_raw_os_error(error.errno());
            return vec![
                Check::failed(
                    "device",
                    format!("opening {DEVICE}: {reason}"),
                    fix_for(error.errno()),
                ),
                Check::skipped("probe boot", "KVM is not available"),
            ];
        }
    };
    vec![
        Check::ok("device", format!("{DEVICE} can be opened")),
        version(&kvm),
        capabilities(&kvm),
        boot(),
    ]
}

fn fix_for(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            "modprobe kvm_intel or kvm_amd; if that fails, enable virtualisation in the firmware,\n\
             or nested virtualisation if this machine is a VM"
        }
        libc::EACCES | libc::EPERM => {
            "run nacre doctor as root; if it runs in a container, give the container the device /dev/kvm"
        }
        _ => "look into the host kernel's log (dmesg | grep -i kvm)",
    }
}

fn version(kvm: &Kvm) -> Check {
    match kvm.get_api_version() {
        12 => Check::ok("API version", "12"),
        other => Check::failed(
            "API version",
            format!("expected 12, got {other}"),
            "boot a host kernel of version 5.14 or later",
        ),
    }
}

fn capabilities(kvm: &Kvm) -> Check {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Check::ok(
            "capabilities",
            format!("all {} required ones are available", NEEDED.len()),
        );
    }
    let found = format!("KVM lacks {}", missing.join(", "));
    Check::failed(
        "capabilities",
        found,
        "boot a newer host kernel, on a CPU with hardware virtualisation",
    )
}

fn boot() -> Check {
    let report = probe::run(Path::new(DEVICE));
    if report.runs_linux() {
        return Check::ok("probe boot", report.to_string());
    }
    Check::failed(
        "probe boot",
        report.to_string(),
        "use a machine with hardware virtualisation: this machine's KVM can't run an ordinary kernel;\n\
         to develop and test on this machine, run commands in the lab VM: tests/lab/run -- COMMAND",
    )
}
