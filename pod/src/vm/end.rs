//! How a VMM ended, and the reason that an operator reads. Filled in by [`super::monitor`], read by the
//! sandbox. Pure.

use nacre_protocol::config::Config;
use nacre_protocol::control::{ABORT_EXIT_CODE, Outcome};

use super::monitor::{EXIT_DEADLINE, KILL_DEADLINE};
use crate::error::StepFailed;

/// The exit status of a VMM that called abort(3).
const ABORTED: i32 = ABORT_EXIT_CODE as i32;

/// How the VMM's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signal(i32),
    /// It did not exit in time after its last message or after closing its control socket, so the shim killed
    /// it.
    KilledLate,
    /// It has not exited in time after SIGKILL, and may never.
    Unkillable,
    /// Its exit status could not be read, for this reason.
    Unknown(String),
}

/// The VMM's own report of a start that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStart {
    /// The step that failed, such as "load kernel".
    pub step: String,
    /// Why it failed, with its causes.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
}

/// All that is known of a VMM's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// What the VMM reported if it could not start.
    pub failed: Option<FailedStart>,
    /// How the guest ended, if the VMM reported it.
    pub outcome: Option<Outcome>,
    /// Why a message of the VMM could not be understood.
    pub protocol_error: Option<String>,
    /// How the process ended.
    pub status: Status,
}

impl Default for End {
    fn default() -> Self {
        Self {
            failed: None,
            outcome: None,
            protocol_error: None,
            status: Status::Unknown("it still runs".into()),
        }
    }
}

impl End {
    /// Why the VM ended. The VMM's own report comes first, then the guest's outcome, then how the process
    /// ended. `agent_was_ready` is true if the guest's boot had finished.
    #[must_use]
    pub fn reason(&self, agent_was_ready: bool, config: &Config, stderr_tail: &[String]) -> StepFailed {
        let (kernel, image) = (config.kernel.display(), config.initrd.display());
        let files = format!("kernel {kernel}, image {image}");
        if let Some(FailedStart { step, error, hint }) = &self.failed {
            return step_failed(step, format!("{error} ({files})"), hint.clone());
        }
        let step = if agent_was_ready { "running" } else { "boot guest" };
        match &self.outcome {
            Some(Outcome::Panic) if agent_was_ready => {
                return step_failed(step, "the VM ended: kernel panic in the guest", None);
            }
            Some(Outcome::Panic) => {
                let reason = format!("kernel panic in the guest before its agent was ready ({files})");
                let hint =
                    format!("check that the guest image {image} is complete and built for this kernel");
                return step_failed(step, reason, Some(hint));
            }
            Some(outcome @ (Outcome::PowerOff | Outcome::Reset { .. } | Outcome::Fault { .. })) => {
                let early = if agent_was_ready {
                    ""
                } else {
                    " before its agent was ready"
                };
                return step_failed(step, format!("the VM ended{early}: {outcome}"), None);
            }
            None => {}
        }
        if let Some(error) = &self.protocol_error {
            let hint = "shim and VMM may be of different builds: install both again".to_owned();
            let reason = format!("the VMM sent an invalid message: {error}");
            return step_failed(step, reason, Some(hint));
        }
        let (reason, hint) = self.status.reason();
        let stderr = stderr_tail
            .last()
            .map(|line| format!("; its standard error ends with: {line}"))
            .unwrap_or_default();
        step_failed(step, format!("{reason}{stderr}"), hint.map(str::to_owned))
    }
}

impl Status {
    /// A reason and a hint, for a VMM that reported nothing itself.
    fn reason(&self) -> (String, Option<&'static str>) {
        match self {
            Self::Signal(libc::SIGSYS) => (
                "the VMM was killed by SIGSYS: its seccomp filter forbids a system call that it made".into(),
                Some("the kernel's audit log names the system call"),
            ),
            Self::Signal(libc::SIGKILL) => (
                "the VMM was killed by SIGKILL".into(),
                Some(
                    "the kernel's log shows whether it was OOM-killed; otherwise another process sent the signal",
                ),
            ),
            Self::Signal(libc::SIGBUS) => (
                "the VMM crashed with SIGBUS: a page of its memory could not be read or allocated".into(),
                Some(
                    "a file that it has mapped was truncated, or the host's disk or memory failed \
                     (see the host's kernel log)",
                ),
            ),
            Self::Signal(signal @ (libc::SIGSEGV | libc::SIGILL | libc::SIGFPE)) => (
                format!("the VMM crashed with {}", signal_name(*signal)),
                Some("this is a bug in Nacre: please report it with the line of the host's kernel log"),
            ),
            // A VMM that is not yet in its jail dies of the signal itself.
            Self::Signal(libc::SIGABRT) | Self::Exited(ABORTED) => (
                "the VMM aborted".into(),
                Some("its standard error has the reason"),
            ),
            Self::Signal(signal) => (format!("the VMM was killed by {}", signal_name(*signal)), None),
            Self::Exited(code) => (format!("the VMM exited with {code} without a reason"), None),
            Self::KilledLate => {
                let s = EXIT_DEADLINE.as_secs();
                let reason = format!("the VMM did not exit within {s} s and was killed");
                (reason, None)
            }
            Self::Unkillable => (
                format!(
                    "the VMM has not exited {} s after SIGKILL",
                    KILL_DEADLINE.as_secs()
                ),
                Some("a system call of its file server hangs: check the file systems that the pod mounts"),
            ),
            Self::Unknown(why) => (format!("the VMM's exit status is not known: {why}"), None),
        }
    }
}

fn step_failed(step: &str, reason: impl Into<String>, hint: Option<String>) -> StepFailed {
    StepFailed {
        step: step.to_owned(),
        reason: reason.into(),
        hint,
        console: Vec::new(),
    }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            kernel: "/k/vmlinux".into(),
            initrd: "/i/image.cpio".into(),
            ..crate::size::tests::config(75, None)
        }
    }

    fn reason(end: &End, agent_was_ready: bool) -> String {
        end.reason(agent_was_ready, &config(), &["the last line".into()])
            .to_string()
    }

    #[test]
    fn a_panic_at_boot_names_the_image_and_later_does_not() {
        let end = End {
            outcome: Some(Outcome::Panic),
            status: Status::Exited(1),
            ..End::default()
        };
        let early = reason(&end, false);
        assert!(
            early.contains("panic") && early.contains("guest image /i/image.cpio"),
            "{early}"
        );
        let late = reason(&end, true);
        assert!(late.contains("panic") && !late.contains("image"), "{late}");
    }

    #[test]
    fn a_failed_start_has_the_vmm_s_reason_and_the_files() {
        let failed = Some(FailedStart {
            step: "load kernel".into(),
            error: "no PVH entry".into(),
            hint: Some("build it with PVH".into()),
        });
        let text = reason(
            &End {
                failed,
                status: Status::Exited(1),
                ..End::default()
            },
            false,
        );
        assert_eq!(
            text,
            "load kernel: no PVH entry (kernel /k/vmlinux, image /i/image.cpio); build it with PVH"
        );
    }

    #[test]
    fn the_guest_s_outcome_comes_before_how_the_process_ended() {
        for status in [Status::KilledLate, Status::Unkillable, Status::Exited(0)] {
            let end = End {
                outcome: Some(Outcome::PowerOff),
                status: status.clone(),
                ..End::default()
            };
            assert!(reason(&end, true).contains("powered off"), "{status:?}");
            let silent = End {
                status,
                ..End::default()
            };
            let text = reason(&silent, true);
            assert!(
                text.contains("the VMM") && text.contains("the last line"),
                "{text}"
            );
        }
    }

    #[test]
    fn each_kind_of_crash_is_described() {
        let abort = Status::Exited(ABORTED);
        for (status, words) in [
            (Status::Signal(libc::SIGKILL), ["killed by SIGKILL", "OOM-killed"]),
            (Status::Signal(libc::SIGSYS), ["killed by SIGSYS", "audit log"]),
            (
                Status::Signal(libc::SIGSEGV),
                ["crashed with SIGSEGV", "bug in Nacre"],
            ),
            (
                Status::Signal(libc::SIGILL),
                ["crashed with SIGILL", "bug in Nacre"],
            ),
            (Status::Signal(libc::SIGBUS), ["crashed with SIGBUS", "truncated"]),
            (Status::Signal(libc::SIGABRT), ["aborted", "standard error has"]),
            (abort, ["aborted", "standard error has"]),
            (Status::Signal(libc::SIGTERM), ["killed by SIGTERM", ""]),
            (Status::Exited(1), ["exited with 1", ""]),
        ] {
            let end = End {
                status: status.clone(),
                ..End::default()
            };
            let text = reason(&end, true);
            for word in words.into_iter().chain(["the last line"]) {
                assert!(text.contains(word), "{status:?}: {text}");
            }
            assert_eq!(
                text.contains("seccomp"),
                status == Status::Signal(libc::SIGSYS),
                "{text}"
            );
        }
    }
}
