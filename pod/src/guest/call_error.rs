//! Why a call of the agent failed: it refused, it did not answer in time, or its stream is lost.

use nacre_protocol::text::printable;

use super::DEADLINE;
use crate::error::{Error, StepFailed};
use crate::guest_text::MAX_MESSAGE;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The agent refused, with this status.
    Answer(ttrpc::Code, String),
    /// No answer came within [`DEADLINE`]. The agent may still carry the call out.
    TimedOut,
    /// The stream is lost, most likely with the VM; or the request can't be made.
    Lost(String),
}

impl CallError {
    /// The error for the caller; `step` names the call if the agent did not answer it.
    pub fn into_error(self, step: &str) -> Error {
        match self {
            Self::Answer(code, message) => Error::Guest { code, message },
            Self::TimedOut => Error::Guest {
                code: ttrpc::Code::DEADLINE_EXCEEDED,
                message: format!("{step}: the agent did not answer within {} s", DEADLINE.as_secs()),
            },
            Self::Lost(reason) => StepFailed {
                step: step.into(),
                reason,
                hint: None,
                console: Vec::new(),
            }
            .into(),
        }
    }
}

impl From<ttrpc::Error> for CallError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::Answer(status.code(), printable(&status.message, MAX_MESSAGE))
            }
            lost @ (ttrpc::Error::Socket(_)
            | ttrpc::Error::Nix(_)
            | ttrpc::Error::LocalClosed
            | ttrpc::Error::RemoteClosed
            | ttrpc::Error::Eof
            | ttrpc::Error::Others(_)) => {
                let reason = printable(&lost.to_string(), MAX_MESSAGE);
                Self::Lost(format!("the agent's stream: {reason}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_hostile_agent_are_bounded() {
        let text = "\x1b[31m\n".repeat(500_000);
        let refused = ttrpc::get_status(ttrpc::Code::INTERNAL, text.clone());
        for error in [
            ttrpc::Error::RpcStatus(refused),
            ttrpc::Error::Others(text.clone()),
            ttrpc::Error::Socket(text),
        ] {
            let reason = CallError::from(error).into_error("Call").to_string();
            assert!(reason.len() <= MAX_MESSAGE + 64, "{} bytes", reason.len());
            assert!(!reason.contains(char::is_control));
        }
    }
}
