//! Finds out whether this host's KVM runs Linux, by booting a guest of a few hundred bytes that does what Linux does
//! early. A /dev/kvm that opens is not enough: some hosts have one that can't handle a breakpoint.
//!
//! Called by `nacre-vmm --probe` and `nacre doctor`. Takes milliseconds where KVM works, at most [`DEADLINE`] where
//! it doesn't; never needs a kernel image.

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

/// How long the whole probe may take.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// How often the watchdog signals a vCPU thread that has not left KVM_RUN yet: a signal that comes just before
/// KVM_RUN is lost.
const KICK_EVERY: Duration = Duration::from_millis(5);
/// After the deadline, how long a thread may take to come back before it is left alone.
const GRACE: Duration = Duration::from_millis(500);
const EXPECTED_API: i32 = 12;

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The guest did it.
    Passed,
    /// It did not work, and why.
    Failed(String),
    /// Not tried, since the time was up or there is no machine.
    NotTried,
}

/// A check and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was tried.
    pub name: &'static str,
    /// What became of it.
    pub verdict: Verdict,
}

/// What the probe found. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Why no machine could be made at all.
    pub no_machine: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether KVM on this host runs Linux.
    #[must_use]
    pub fn runs_linux(&self) -> bool {
        self.no_machine.is_none() && self.checks.iter().all(|check| check.verdict == Verdict::Passed)
    }

    /// What `nacre-vmm --probe` exits with: 0 where KVM runs Linux, 3 where it can't.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.runs_linux() { 0 } else { 3 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took.as_millis();
        if let Some(reason) = &self.no_machine {
            return write!(f, "KVM can't run Linux here: {reason} ({took} ms)");
        }
        // Checks that failed for the same reason are named together.
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

/// Probes the KVM at `device`, usually `/dev/kvm`. A check that fails does not keep the later ones from being tried.
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
    let no_machine = open(device)
        .and_then(|kvm| try_all(&Arc::new(kvm), &mut checks, started))
        .err();
    Report {
        checks,
        no_machine,
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
        EXPECTED_API => Ok(kvm),
        other => Err(format!("KVM API version {other} instead of {EXPECTED_API}")),
    }
}

/// One machine runs the checks until one fails; the next machine goes on after it.
fn try_all(kvm: &Arc<Kvm>, checks: &mut [Check], started: Instant) -> Result<(), String> {
    register_signal_handler(kick_signal(), ignore).map_err(|error| format!("signal handler: {error}"))?;
    let mut first = 0;
    while first < checks.len() {
        let left = DEADLINE.saturating_sub(started.elapsed());
        let run = match within(left, kvm, first)? {
            // The time was up before the first check ran: it says nothing about it.
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

/// Runs a machine on a thread of its own and fetches it out of KVM_RUN when `time` is up.
fn within(time: Duration, kvm: &Arc<Kvm>, first: usize) -> Result<machine::Run, String> {
    let (done, result) = channel();
    let stop = Arc::new(AtomicBool::new(time.is_zero()));
    let (kvm, stopped) = (Arc::clone(kvm), Arc::clone(&stop));
    let thread = std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // Where nobody listens any more the deadline is over.
            let _ = done.send(machine::run(&kvm, first, &stopped));
        })
        .map_err(|error| format!("a thread for the vCPU: {error}"))?;
    let mut outcome = result.recv_timeout(time);
    stop.store(true, Ordering::Release);
    let grace = Instant::now();
    while matches!(outcome, Err(RecvTimeoutError::Timeout)) && grace.elapsed() < GRACE {
        thread
            .kill(kick_signal())
            .map_err(|error| format!("signalling the vCPU's thread: {error}"))?;
        outcome = result.recv_timeout(KICK_EVERY);
    }
    outcome.map_err(|error| format!("the vCPU's thread does not come back from KVM_RUN: {error}"))?
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN().saturating_add(5)
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the host's KVM is, there is a verdict in time, and it has a reason.
    #[test]
    fn gives_a_verdict_with_a_reason_within_the_deadline() {
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
    fn a_file_that_is_no_kvm_is_refused() {
        let report = run(Path::new("/dev/null"));
        assert!(!report.runs_linux(), "{report}");
        assert!(report.to_string().contains("API version"), "{report}");
    }
}
