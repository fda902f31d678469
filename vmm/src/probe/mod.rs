//! Checks whether this host's KVM runs Linux, by booting a guest of a few hundred bytes that does what Linux
//! does early. That /dev/kvm opens is not enough: some hosts have a KVM that can't handle a breakpoint.
//!
//! Called by `nacre-vmm --probe` and `nacre doctor`. Takes milliseconds if KVM works, otherwise at most
//! [`DEADLINE`]; needs no kernel image.

mod guest;
mod machine;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use crate::kvm::API_VERSION;

/// Time limit of the whole probe.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Interval at which the main thread signals a vCPU thread to leave KVM_RUN. A single signal would be lost if
/// it came just before KVM_RUN.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(5);
/// Time after the deadline that a vCPU thread has to leave KVM_RUN; then the probe reports that it hangs.
const GRACE: Duration = Duration::from_millis(500);

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The guest did what the check demands.
    Passed,
    /// It did not, for this reason.
    Failed(String),
    /// The time was up, or no VM could be created.
    NotTried,
}

/// A check with its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What the guest tries, such as "XSAVE and XRSTOR".
    pub name: &'static str,
    /// The result.
    pub verdict: Verdict,
}

/// The result of the probe. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// All checks, in the order in which the guest tries them.
    pub checks: Vec<Check>,
    /// Why no VM could be created, if so; then no check was tried.
    pub vm_error: Option<String>,
    /// Duration of the probe.
    pub took: Duration,
}

impl Report {
    /// True if a VM could be created and all checks passed.
    #[must_use]
    pub fn runs_linux(&self) -> bool {
        self.vm_error.is_none() && self.checks.iter().all(|check| check.verdict == Verdict::Passed)
    }

    /// Exit code of `nacre-vmm --probe`: 0 if KVM runs Linux, otherwise 3.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.runs_linux() { 0 } else { 3 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took.as_millis();
        if let Some(reason) = &self.vm_error {
            return write!(f, "KVM can't run Linux here: {reason} ({took} ms)");
        }
        // Checks that failed for the same reason are listed together.
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for check in &self.checks {
            let Verdict::Failed(reason) = &check.verdict else {
                continue;
            };
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, names)) => names.push(check.name),
                None => reasons.push((reason, vec![check.name])),
            }
        }
        let failed: Vec<String> = reasons
            .iter()
            .map(|(reason, names)| format!("{}: {reason}", names.join(", ")))
            .collect();
        if self.runs_linux() {
            write!(
                f,
                "KVM runs Linux here: all {} checks passed ({took} ms)",
                self.checks.len()
            )
        } else {
            write!(f, "KVM can't run Linux here: {} ({took} ms)", failed.join("; "))
        }
    }
}

/// Probes the KVM device at path `device`, usually `/dev/kvm`. Tries all checks, including those after a
/// failed one.
#[must_use]
pub fn run(device: &Path) -> Report {
    let started = Instant::now();
    let mut checks: Vec<Check> = guest::CHECKS
        .iter()
        .map(|name| Check {
            name,
            verdict: Verdict::NotTried,
        })
        .collect();
    let vm_error = open(device)
        .and_then(|kvm| try_all(&Arc::new(kvm), &mut checks, started))
        .err();
    Report {
        checks,
        vm_error,
        took: started.elapsed(),
    }
}

fn open(device: &Path) -> Result<Kvm, String> {
    let path = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())
        .map_err(|error| format!("{}: {error}", device.display()))?;
    let kvm = Kvm::new_with_path(path).map_err(|error| {
        format!(
            "opening {}: {}",
            device.display(),
            std::io::Error::from_raw_os_error(error.errno())
        )
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(format!("KVM API version is {other}, expected {API_VERSION}")),
    }
}

/// Each VM runs the checks until one fails; the next VM continues with the check after it.
fn try_all(kvm: &Arc<Kvm>, checks: &mut [Check], started: Instant) -> Result<(), String> {
    register_signal_handler(stop_signal(), ignore_signal)
        .map_err(|error| format!("installing a signal handler: {error}"))?;
    let mut first = 0;
    while first < checks.len() {
        let left = DEADLINE.saturating_sub(started.elapsed());
        let run = match run_with_timeout(left, kvm, first)? {
            // The time was up before the first check ran, so the result says nothing about this check.
            run if run.passed == 0 && left.is_zero() => return Ok(()),
            run => run,
        };
        for check in checks.iter_mut().skip(first).take(run.passed) {
            check.verdict = Verdict::Passed;
        }
        first = first.saturating_add(run.passed);
        if let (Some(reason), Some(check)) = (run.failed, checks.get_mut(first)) {
            check.verdict = Verdict::Failed(reason);
            first = first.saturating_add(1);
        }
    }
    Ok(())
}

/// Runs a VM on a new thread, and makes that thread leave KVM_RUN after `timeout`.
fn run_with_timeout(timeout: Duration, kvm: &Arc<Kvm>, first: usize) -> Result<machine::Run, String> {
    let (done, result) = channel();
    let stop = Arc::new(AtomicBool::new(timeout.is_zero()));
    let (kvm, stop_seen) = (Arc::clone(kvm), Arc::clone(&stop));
    let thread = std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // Sending fails only after the grace period, when the receiver is dropped.
            let _ = done.send(machine::run(&kvm, first, &stop_seen));
        })
        .map_err(|error| format!("creating the vCPU's thread: {error}"))?;
    let mut outcome = result.recv_timeout(timeout);
    stop.store(true, Ordering::Release);
    let grace = Instant::now();
    while matches!(outcome, Err(RecvTimeoutError::Timeout)) && grace.elapsed() < GRACE {
        thread
            .kill(stop_signal())
            .map_err(|error| format!("signalling the vCPU's thread: {error}"))?;
        outcome = result.recv_timeout(SIGNAL_INTERVAL);
    }
    outcome.map_err(|error| format!("the vCPU's thread does not return from KVM_RUN: {error}"))?
}

fn stop_signal() -> libc::c_int {
    SIGRTMIN().saturating_add(5)
}

extern "C" fn ignore_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_gets_a_verdict_with_a_reason_within_the_deadline() {
        let report = run(Path::new("/dev/kvm"));
        assert!(report.took < DEADLINE + GRACE * 2, "{report}");
        let line = report.to_string();
        assert!(!line.contains('\n'), "{line}");
        if !report.runs_linux() {
            assert!(line.contains("can't") && line.contains(": "), "{line}");
        }
        println!("{report:#?}\n{line}");
    }

    #[test]
    fn a_missing_device_is_named() {
        let report = run(Path::new("/no/such/kvm"));
        assert!(!report.runs_linux());
        assert!(
            report.to_string().contains("/no/such/kvm: No such file"),
            "{report}"
        );
    }

    #[test]
    fn a_device_other_than_kvm_is_refused() {
        let report = run(Path::new("/dev/null"));
        assert!(!report.runs_linux(), "{report}");
        assert!(report.to_string().contains("API version"), "{report}");
    }
}
