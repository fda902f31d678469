//! KVM: the device, what it can, and whether it really runs a guest.

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use nacre_vmm::probe;

use super::Check;

const DEVICE: &str = "/dev/kvm";
/// What the VMM uses without asking.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "IRQCHIP"),
    (Cap::UserMemory, "USER_MEMORY"),
    (Cap::SetTssAddr, "SET_TSS_ADDR"),
    (Cap::ExtCpuid, "EXT_CPUID"),
    (Cap::MpState, "MP_STATE"),
    (Cap::Irqfd, "IRQFD"),
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
                    opening(error.errno()),
                ),
                Check::skipped("probe boot", "no KVM"),
            ];
        }
    };
    vec![
        Check::ok("device", format!("{DEVICE} opens")),
        version(&kvm),
        capabilities(&kvm),
        boot(),
    ]
}

fn opening(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            "modprobe kvm_intel or kvm_amd; where that fails: turn on virtualisation in the firmware,\n\
             or nested virtualisation where this machine is itself a virtual one"
        }
        libc::EACCES | libc::EPERM => "run it as root; in a container, pass the device /dev/kvm to it",
        _ => "see the host kernel's log (dmesg | grep -i kvm)",
    }
}

fn version(kvm: &Kvm) -> Check {
    match kvm.get_api_version() {
        12 => Check::ok("API version", "12"),
        other => Check::failed(
            "API version",
            format!("{other} instead of 12"),
            "boot a kernel of this decade",
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
        return Check::ok("capabilities", format!("all {} that are needed", NEEDED.len()));
    }
    let found = format!("KVM lacks {}", missing.join(", "));
    Check::failed(
        "capabilities",
        found,
        "boot a newer kernel, or one whose KVM uses the CPU's virtualisation",
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
        "this machine's KVM can't run an ordinary kernel: use one with hardware virtualisation;\n\
         to develop and test here all the same: tests/lab/run -- COMMAND",
    )
}
