//! The profiles of the main thread and of vCPUs allow no system call that nobody makes: the other tests of this
//! program run again under strace(1). Those of devices are tested with the devices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nacre_vmm::jail::Profile;
use nacre_vmm::jail::calls::{Argument, CONTROL, Call, SAVED_VCPU, SAVER, VCPU, balloon, blk, mem, net, rng};

use super::*;

/// A system call's number, and the command of an ioctl.
type Made = (i64, Option<u64>);

/// A profile, and the calls that are made elsewhere only, each with the place.
type Row = (&'static Profile, &'static [(Made, &'static str)]);

/// The tests of the transport do so without KVM.
const DRIVER: &str = "a driver that unmasks a vector whose interrupt is pending";
/// The guests here have none, so they can only be saved before they go on.
const AGENT: &str = "a guest with an agent that is saved as a template";

const POLL: Made = (libc::SYS_poll, None);
const FALLOCATE: Made = (libc::SYS_fallocate, None);
const PREAD: Made = (libc::SYS_pread64, None);
const KVM_RUN: Made = (libc::SYS_ioctl, Some(0xae80));
const KVM_KVMCLOCK_CTRL: Made = (libc::SYS_ioctl, Some(0xaead));
const KVM_SIGNAL_MSI: Made = (libc::SYS_ioctl, Some(0x4020_aea5));
const KVM_SET_USER_MEMORY_REGION: Made = (libc::SYS_ioctl, Some(0x4020_ae46));
const KVM_GET_DIRTY_LOG: Made = (libc::SYS_ioctl, Some(0x4010_ae42));

const PROFILES: [Row; 4] = [
    (&CONTROL, &[]),
    (&VCPU, &[(KVM_SIGNAL_MSI, DRIVER)]),
    (
        &SAVED_VCPU,
        &[
            (KVM_RUN, AGENT),
            (KVM_KVMCLOCK_CTRL, AGENT),
            (KVM_SIGNAL_MSI, DRIVER),
        ],
    ),
    (
        &SAVER,
        &[
            (POLL, AGENT),
            (PREAD, AGENT),
            (FALLOCATE, AGENT),
            (KVM_SIGNAL_MSI, AGENT),
            (KVM_SET_USER_MEMORY_REGION, AGENT),
            (KVM_GET_DIRTY_LOG, AGENT),
        ],
    ),
];

/// Of what a worker needs that the confined main thread creates.
static ADDED_DEVICES: [&Profile; 5] = [
    &balloon::PROFILE,
    &blk::PROFILE,
    &mem::PROFILE,
    &net::PROFILE,
    &rng::PROFILE,
];

/// Calls of which the C library makes one or the other, depending on its version.
const EITHER: [Made; 2] = [(libc::SYS_newfstatat, None), (libc::SYS_fstat, None)];

fn expand(call: &Call) -> Vec<Made> {
    match call.argument {
        Argument::OneOf { values, .. } if call.number == libc::SYS_ioctl => {
            values.iter().map(|value| (call.number, Some(*value))).collect()
        }
        Argument::Any
        | Argument::OneOf { .. }
        | Argument::Options(_)
        | Argument::Unsupported
        | Argument::Without { .. } => vec![(call.number, None)],
    }
}

/// The call of a line such as `[  16] ioctl(5, 0xae80, 0) = 0`.
fn parse(line: &str) -> Option<Made> {
    let (number, call) = line.strip_prefix('[')?.split_once(']')?;
    let number = number.trim().parse().ok()?;
    let command = || {
        let argument = call.split(", ").nth(1)?.split([' ', ')']).next()?;
        u64::from_str_radix(argument.strip_prefix("0x")?, 16).ok()
    };
    Some((number, command().filter(|_| number == libc::SYS_ioctl)))
}

/// What a thread did before its seccomp filter was installed, and since then.
struct Thread<'a> {
    before: &'a str,
    confined: &'a str,
}

impl<'a> Thread<'a> {
    fn new(lines: &'a str) -> Self {
        // The last one: calls that fail have a filter of their own.
        let installed = lines.rfind("] seccomp(0x1, ").unwrap_or(lines.len());
        let end = lines[installed..].find('\n').unwrap_or(0);
        let (before, confined) = lines.split_at(installed + end);
        Self { before, confined }
    }

    /// The profile of a VMM's main thread.
    fn main_profile(&self) -> Option<&'static str> {
        let mut executed = self.before.lines().filter(|line| line.contains("] execve("));
        executed.find_map(|line| {
            if line.contains("\"--save\"") {
                Some(SAVER.name)
            } else {
                line.contains("\"--control-fd\"").then_some(CONTROL.name)
            }
        })
    }

    /// Whether a thread of this number is created in `lines`.
    fn creates(lines: &str, id: &str) -> bool {
        let result = format!(" = {id}");
        lines
            .lines()
            .any(|line| line.contains("] clone") && line.ends_with(&result))
    }
}

/// The calls that each profile's threads made, from the files that strace has written to `directory`, one per thread.
fn recorded(directory: &Path) -> BTreeMap<&'static str, BTreeSet<Made>> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let id = |path: &Path| path.extension().unwrap().to_str().unwrap().to_owned();
    let files: BTreeMap<String, String> = paths.map(|path| (id(&path), read(&path))).collect();
    let threads: BTreeMap<&str, Thread<'_>> = files
        .iter()
        .map(|(id, lines)| (id.as_str(), Thread::new(lines)))
        .collect();
    let mut recorded: BTreeMap<_, BTreeSet<Made>> = BTreeMap::new();
    let mut add = |profile, lines: &str| {
        recorded
            .entry(profile)
            .or_default()
            .extend(lines.lines().filter_map(parse));
    };
    for main in threads.values() {
        let Some(profile) = main.main_profile() else {
            continue;
        };
        add(profile, main.confined);
        for (id, thread) in &threads {
            if Thread::creates(main.confined, id) {
                // It has the main thread's filter from its first call.
                add(profile, thread.before);
                add(profile, thread.confined);
            } else if thread.before.contains("\"vcpu") && Thread::creates(main.before, id) {
                let vcpu = if profile == SAVER.name { &SAVED_VCPU } else { &VCPU };
                add(vcpu.name, thread.confined);
            }
        }
    }
    recorded
}

/// Runs the other tests of this program under strace; false if there is none.
fn run_recorded(directory: &Path) -> bool {
    let output = Command::new("strace")
        .args(["-ff", "-qq", "-n", "-X", "raw", "-e", "signal=none", "-o"])
        .arg(directory.join("thread"))
        .arg(std::env::current_exe().unwrap())
        .args(["--skip", "used_calls", "--test-threads=2"])
        .env_remove("RUST_BACKTRACE")
        .output();
    let Ok(output) = output else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{text}", output.status);
    true
}

#[test]
fn each_call_of_the_main_thread_and_of_vcpus_is_made_by_a_test() {
    if !nix::unistd::geteuid().is_root() || kvm().is_none() {
        return println!("skipped: not root, or no /dev/kvm");
    }
    let directory = tempfile::tempdir().unwrap();
    if !run_recorded(directory.path()) {
        return println!("skipped: no strace");
    }
    let recorded = recorded(directory.path());
    let of_added_devices: BTreeSet<Made> = ADDED_DEVICES
        .iter()
        .flat_map(|profile| profile.own_calls())
        .flat_map(expand)
        .collect();
    for (profile, elsewhere) in PROFILES {
        let recorded = &recorded[profile.name];
        for made in profile.own_calls().flat_map(expand) {
            if profile.name == CONTROL.name && of_added_devices.contains(&made) {
                continue;
            }
            let is_made = recorded.contains(&made)
                || EITHER.contains(&made) && EITHER.iter().any(|either| recorded.contains(either));
            let is_elsewhere = elsewhere.iter().any(|(number, _)| *number == made);
            assert!(
                is_made != is_elsewhere,
                "{}: system call {made:x?} is {}made in these tests",
                profile.name,
                if is_elsewhere { "" } else { "not " },
            );
        }
    }
}
