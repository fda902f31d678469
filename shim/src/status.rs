//! Converts the engine's errors to ttrpc statuses. containerd and its clients act on the code; the text is
//! for people.

use ttrpc::{Code, get_status};

use nacre_pod::Error;

/// The ttrpc code for `error`.
fn code(error: &Error) -> Code {
    match error {
        Error::NoTask(_)
        | Error::NoPod(_)
        | Error::NoProcess(_)
        | Error::Finished(_)
        | Error::NoCounters(_) => Code::NOT_FOUND,
        Error::Exists(_) => Code::ALREADY_EXISTS,
        Error::State { .. } | Error::PauseContainer { .. } | Error::PodState { .. } => {
            Code::FAILED_PRECONDITION
        }
        Error::InvalidId(_) | Error::Refused(_) => Code::INVALID_ARGUMENT,
        Error::NotImplemented(_) => Code::UNIMPLEMENTED,
        Error::Step(_) => Code::UNKNOWN,
        Error::Guest { code, .. } => *code,
        Error::Cancelled(_) => Code::CANCELLED,
        Error::Closing => Code::UNAVAILABLE,
    }
}

/// The text that containerd's own errors of a code end with, and that clients search for. Older versions of
/// containerd append it if it is missing; newer ones print the message unchanged.
const CLASSES: [(Code, &str); 6] = [
    (Code::NOT_FOUND, "not found"),
    (Code::ALREADY_EXISTS, "already exists"),
    (Code::FAILED_PRECONDITION, "failed precondition"),
    (Code::INVALID_ARGUMENT, "invalid argument"),
    (Code::UNIMPLEMENTED, "not implemented"),
    (Code::UNAVAILABLE, "unavailable"),
];

/// Converts `error` to the status that answers a call.
pub fn status_of(error: Error) -> ttrpc::Error {
    let code = code(&error);
    let mut message = error.to_string();
    if let Some((_, class)) = CLASSES.iter().find(|(of, _)| *of == code)
        && !message.ends_with(class)
    {
        message = format!("{message}: {class}");
    }
    ttrpc::Error::RpcStatus(get_status(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_pod::ProcessId;
    use nacre_pod::StepFailed;
    use nacre_pod::TaskState;

    fn errors_about_processes() -> Vec<(Error, Code, &'static str)> {
        let state = Error::State {
            name: ProcessId::init("a"),
            state: TaskState::Running.name(),
            wanted: "deleted",
        };
        let exec = ProcessId {
            container: "a".into(),
            exec: "x".into(),
        };
        vec![
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
                Error::NoCounters(ProcessId::init("a")),
                Code::NOT_FOUND,
                "task a is stopped",
            ),
            (
                Error::Exists(exec),
                Code::ALREADY_EXISTS,
                "process x of task a already exists",
            ),
            (
                Error::Exists(ProcessId::init("a")),
                Code::ALREADY_EXISTS,
                "task a already exists",
            ),
            (
                state,
                Code::FAILED_PRECONDITION,
                "task a is running: it can't be deleted",
            ),
        ]
    }

    fn other_errors() -> Vec<(Error, Code, &'static str)> {
        let step = StepFailed {
            step: "boot guest".into(),
            reason: "r".into(),
            hint: Some("h".into()),
            console: vec!["c".into()],
        };
        vec![
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
        ]
    }

    #[test]
    fn each_error_has_its_code() {
        for (error, want, words) in errors_about_processes().into_iter().chain(other_errors()) {
            let ttrpc::Error::RpcStatus(status) = status_of(error) else {
                panic!("no status")
            };
            assert_eq!(status.code(), want);
            assert!(status.message.contains(words), "{}", status.message);
        }
    }

    #[test]
    fn a_message_ends_with_its_code_s_text_once() {
        let message = |error| {
            let ttrpc::Error::RpcStatus(status) = status_of(error) else {
                panic!("no status")
            };
            status.message
        };
        let exists = message(Error::Exists(ProcessId::init("a")));
        assert_eq!(exists, "task a already exists");
        let guest = Error::Guest {
            code: Code::NOT_FOUND,
            message: "process already finished".into(),
        };
        assert_eq!(message(guest), "process already finished: not found");
    }
}
