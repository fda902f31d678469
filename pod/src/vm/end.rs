//! What is known of a VMM's end, and what to say of it. Pure.

use nacre_protocol::control::Outcome;

use crate::error::StepFailed;
use nacre_protocol::config::Config;

/// How the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Signal(i32),
    /// Not by itself, though it had said its last.
    Stuck,
    /// The kernel does not say.
    Unknown(String),
}

/// All that is known of an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The step of the start that failed, why, and what to do.
    pub failed: Option<(String, String, Option<String>)>,
    /// How the guest ended.
    pub outcome: Option<Outcome>,
    /// It sent what is no message.
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
    /// The reason to tell, given how far the pod had come.
    #[must_use]
    pub fn reason(&self, agent_was_there: bool, config: &Config, last_words: &[String]) -> StepFailed {
        let files = format!(
            "kernel {}, image {}",
            config.kernel.display(),
            config.initrd.display()
        );
        if let Some((step, error, hint)) = &self.failed {
            let reason = format!("{error} ({files})");
            return StepFailed {
                step: step.clone(),
                reason,
                hint: hint.clone(),
                console: Vec::new(),
            };
        }
        let step = if agent_was_there { "running" } else { "boot guest" };
        let told = |reason: String, hint: Option<String>| StepFailed {
            step: step.into(),
            reason,
            hint,
            console: Vec::new(),
        };
        match &self.outcome {
            Some(Outcome::Panic) if !agent_was_there => {
                let hint = format!(
                    "check the guest image {}: is it whole, and built for this kernel?",
                    config.initrd.display()
                );
                return told(
                    format!("kernel panic in the guest before its agent came ({files})"),
                    Some(hint),
                );
            }
            Some(Outcome::Panic) => return told("the VM ended: kernel panic in the guest".into(), None),
            Some(outcome @ (Outcome::PowerOff | Outcome::Reset { .. } | Outcome::Fault { .. })) => {
                let when = if agent_was_there {
                    ""
                } else {
                    " before its agent came"
                };
                return told(format!("the VM ended{when}: {outcome}"), None);
            }
            None => {}
        }
        if let Some(error) = &self.protocol_error {
            let hint = "shim and VMM may be of different builds: install both again".to_owned();
            return told(format!("the VMM sent what is no message: {error}"), Some(hint));
        }
        let words = last_words
            .last()
            .map(|line| format!("; its last words: {line}"))
            .unwrap_or_default();
        match &self.status {
            Status::Signal(libc::SIGSYS) => {
                let hint = "the kernel's log (audit) names the system call".to_owned();
                told(
                    format!(
                        "the VMM was ended by SIGSYS: a system call that its seccomp filter forbids{words}"
                    ),
                    Some(hint),
                )
            }
            Status::Signal(libc::SIGKILL) => {
                let hint = "somebody killed it, or the kernel did for want of memory: see the kernel's log"
                    .to_owned();
                told(format!("the VMM was ended by SIGKILL{words}"), Some(hint))
            }
            Status::Signal(signal) => told(
                format!("the VMM was ended by {}{words}", signal_name(*signal)),
                None,
            ),
            Status::Exited(code) => told(
                format!("the VMM exited with {code} and told no reason{words}"),
                None,
            ),
            Status::Stuck => told(
                format!("the VMM closed its control socket and had to be killed{words}"),
                None,
            ),
            Status::Unknown(why) => told(format!("the VMM is gone, how is not known: {why}{words}"), None),
        }
    }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    fn config() -> Config {
        Config {
            file: None,
            kernel: "/k/vmlinux".into(),
            initrd: "/i/image.cpio".into(),
            vmm: Path::new("/v").into(),
            memory_mib: 512,
            vcpus: 1,
            kernel_params: String::new(),
            console_to_log: false,
            boot_deadline: Duration::from_secs(1),
        }
    }

    fn said(end: &End, agent_was_there: bool) -> String {
        end.reason(agent_was_there, &config(), &["the last line".into()])
            .to_string()
    }

    #[test]
    fn a_panic_at_boot_names_the_image_and_later_does_not() {
        let end = End {
            outcome: Some(Outcome::Panic),
            status: Status::Exited(1),
            ..End::default()
        };
        let early = said(&end, false);
        assert!(
            early.contains("panic") && early.contains("guest image /i/image.cpio"),
            "{early}"
        );
        let late = said(&end, true);
        assert!(late.contains("panic") && !late.contains("image"), "{late}");
    }

    #[test]
    fn a_failed_start_is_told_as_the_vmm_tells_it_with_the_files() {
        let failed = Some((
            "load kernel".into(),
            "no PVH entry".into(),
            Some("build it with PVH".into()),
        ));
        let text = said(
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
    fn signals_are_named() {
        for (signal, word) in [
            (libc::SIGKILL, "SIGKILL"),
            (libc::SIGSYS, "seccomp"),
            (libc::SIGSEGV, "SIGSEGV"),
        ] {
            let text = said(
                &End {
                    status: Status::Signal(signal),
                    ..End::default()
                },
                true,
            );
            assert!(text.contains(word) && text.contains("the last line"), "{text}");
        }
    }
}
