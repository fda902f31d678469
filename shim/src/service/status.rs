//! An error as containerd understands it: a ttrpc status with a code that its clients act on.

use ttrpc::{Code, get_status};

use crate::error::Error;

/// The code of `error`.
fn code(error: &Error) -> Code {
    match error {
        Error::NoTask(_) | Error::NoProcess(_) | Error::Finished(_) | Error::NoCounters(_) => Code::NOT_FOUND,
        Error::Exists(_) => Code::ALREADY_EXISTS,
        Error::State { .. } => Code::FAILED_PRECONDITION,
        Error::InvalidId(_) | Error::Refused(_) => Code::INVALID_ARGUMENT,
        Error::NotImplemented(_) => Code::UNIMPLEMENTED,
        Error::Step(_) => Code::UNKNOWN,
        Error::Guest { code, .. } => *code,
        Error::Closing => Code::UNAVAILABLE,
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(get_status(code(&error), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StepFailed;
    use crate::process::Name;
    use crate::task_state::TaskState;

    #[test]
    fn every_error_has_the_code_that_containerd_acts_on() {
        let step = StepFailed {
            step: "boot guest".into(),
            reason: "r".into(),
            hint: Some("h".into()),
            console: vec!["c".into()],
        };
        let state = Error::State {
            name: Name::init("a"),
            state: TaskState::Running.name(),
            wanted: "deleted",
        };
        let exec = Name {
            container: "a".into(),
            exec: "x".into(),
        };
        for (error, want, words) in [
            (Error::NoTask("a".into()), Code::NOT_FOUND, "no task a"),
            (
                Error::NoProcess(exec.clone()),
                Code::NOT_FOUND,
                "no process x of task a",
            ),
            (
                Error::Finished(exec.clone()),
                Code::NOT_FOUND,
                "process already finished",
            ),
            (
                Error::NoCounters(Name::init("a")),
                Code::NOT_FOUND,
                "task a is stopped",
            ),
            (
                Error::Exists(exec),
                Code::ALREADY_EXISTS,
                "process x of task a already exists",
            ),
            (
                Error::Exists(Name::init("a")),
                Code::ALREADY_EXISTS,
                "task a already exists",
            ),
            (
                state,
                Code::FAILED_PRECONDITION,
                "task a is running: it can't be deleted",
            ),
            (Error::InvalidId("../x".into()), Code::INVALID_ARGUMENT, "../x"),
            (
                Error::Refused("process.terminal: no".into()),
                Code::INVALID_ARGUMENT,
                "process.terminal",
            ),
            (
                Error::NotImplemented("no Checkpoint"),
                Code::UNIMPLEMENTED,
                "Checkpoint",
            ),
            (
                step.into(),
                Code::UNKNOWN,
                "boot guest: r; h\nthe guest's console ends with:\n  c",
            ),
            (
                Error::Guest {
                    code: Code::RESOURCE_EXHAUSTED,
                    message: "m".into(),
                },
                Code::RESOURCE_EXHAUSTED,
                "m",
            ),
            (Error::Closing, Code::UNAVAILABLE, "shutting down"),
        ] {
            let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
                panic!("no status")
            };
            assert_eq!(status.code(), want);
            assert!(status.message.contains(words), "{}", status.message);
        }
    }
}
