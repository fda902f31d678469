//! What a request to the agent can fail with, and the one place where that becomes a ttrpc status.
//! Used by every module of the agent; never logs.

use std::io;
use std::path::PathBuf;

use ttrpc::Code;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container has this id.
    #[error("container {id:?} not found")]
    NoContainer { id: String },
    /// The container has no such process.
    #[error("container {id:?} has no process {exec_id:?}")]
    NoProcess { id: String, exec_id: String },
    /// The name of a process is taken, or empty.
    #[error("container {id:?} has a process {exec_id:?} already")]
    ProcessExists { id: String, exec_id: String },
    /// A size for a process without a terminal.
    #[error("the process has no terminal")]
    NoTerminal,
    /// A signal for a process that has exited; runc's words, which callers look for.
    #[error("process already finished")]
    ProcessFinished,
    /// The id is taken.
    #[error("container {id:?} already exists")]
    ContainerExists { id: String },
    /// An id that can't be a directory's name.
    #[error("container id {id:?} is not made of letters, digits, '_', '+', '-' and '.'")]
    BadId { id: String },
    /// A part of the spec that can't be honoured.
    #[error("spec: {field}: {reason}")]
    BadSpec { field: &'static str, reason: String },
    /// Fields of the spec that can't be honoured, each with its path.
    #[error("spec: {0}")]
    Refused(String),
    /// A request with a value that means nothing.
    #[error("{what}")]
    BadRequest { what: String },
    /// The command can't be executed; the text is runc's.
    #[error("{0}")]
    Command(String),
    /// Shim and guest image are of different builds.
    #[error("the guest image is of build {agent}, the shim of build {shim}")]
    BuildMismatch { agent: String, shim: String },
    /// The container's state does not allow the request.
    #[error("container {id:?} is {state}: {request} is not possible")]
    WrongState {
        id: String,
        state: &'static str,
        request: &'static str,
    },
    /// libcontainer refused or failed.
    #[error("{0}")]
    Runtime(String),
    /// The helper that runs libcontainer ended without an answer.
    #[error("the container helper died: {0}")]
    HelperDied(String),
    /// The system refused something.
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    /// The system refused something about a file.
    #[error("{what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the system call that failed, and on what.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }

    /// For `map_err`: what was done with the file at `path`.
    pub fn file<E: Into<io::Error>>(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            what,
            path,
            source: source.into(),
        }
    }

    /// That `field` of a spec can't be honoured, and why.
    pub fn bad_spec(field: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::BadSpec { field, reason }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoContainer { .. } | Self::NoProcess { .. } | Self::ProcessFinished => Code::NOT_FOUND,
            Self::ContainerExists { .. } | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::BadId { .. }
            | Self::BadSpec { .. }
            | Self::Refused(_)
            | Self::BadRequest { .. }
            | Self::Command(_) => Code::INVALID_ARGUMENT,
            Self::BuildMismatch { .. } | Self::WrongState { .. } | Self::NoTerminal => {
                Code::FAILED_PRECONDITION
            }
            Self::Runtime(_) | Self::HelperDied(_) | Self::System { .. } | Self::File { .. } => {
                Code::INTERNAL
            }
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: Error) -> (Code, String) {
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
            panic!("not a status")
        };
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn not_found() {
        let (code, text) = status(Error::NoContainer { id: "a".into() });
        assert_eq!(
            (code, text.as_str()),
            (Code::NOT_FOUND, "container \"a\" not found")
        );
        let (code, text) = status(Error::ProcessFinished);
        assert_eq!(
            (code, text.as_str()),
            (Code::NOT_FOUND, "process already finished")
        );
        let (code, _) = status(Error::NoProcess {
            id: "a".into(),
            exec_id: "b".into(),
        });
        assert_eq!(code, Code::NOT_FOUND);
    }

    #[test]
    fn already_exists() {
        let (code, text) = status(Error::ContainerExists { id: "a".into() });
        assert_eq!(
            (code, text.as_str()),
            (Code::ALREADY_EXISTS, "container \"a\" already exists")
        );
    }

    #[test]
    fn invalid_argument() {
        let (code, text) = status(Error::BadSpec {
            field: "process.args",
            reason: "is empty".into(),
        });
        assert_eq!(
            (code, text.as_str()),
            (Code::INVALID_ARGUMENT, "spec: process.args: is empty")
        );
        assert_eq!(status(Error::BadId { id: "..".into() }).0, Code::INVALID_ARGUMENT);
        assert_eq!(
            status(Error::BadRequest { what: "x".into() }).0,
            Code::INVALID_ARGUMENT
        );
        let (code, text) = status(Error::Command("exec: \"x\": permission denied".into()));
        assert_eq!(
            (code, text.as_str()),
            (Code::INVALID_ARGUMENT, "exec: \"x\": permission denied")
        );
    }

    #[test]
    fn failed_precondition() {
        let (code, text) = status(Error::BuildMismatch {
            agent: "1".into(),
            shim: "2".into(),
        });
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert!(text.contains("build 1") && text.contains("build 2"), "{text}");
        let (code, text) = status(Error::WrongState {
            id: "a".into(),
            state: "running",
            request: "delete",
        });
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert_eq!(text, "container \"a\" is running: delete is not possible");
    }

    #[test]
    fn internal() {
        let source = io::Error::from_raw_os_error(2);
        let error = Error::file("reading", "/x")(source);
        let (code, text) = status(error);
        assert_eq!(code, Code::INTERNAL);
        assert!(text.starts_with("reading /x: No such file"), "{text}");
        assert_eq!(status(Error::Runtime("x".into())).0, Code::INTERNAL);
        assert_eq!(status(Error::HelperDied("x".into())).0, Code::INTERNAL);
        assert_eq!(
            status(Error::system("x")(io::Error::from_raw_os_error(1))).0,
            Code::INTERNAL
        );
    }
}
