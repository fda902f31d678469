//! The agent's error type, and its only conversion to a ttrpc status. Used by every module of the agent;
//! never logs.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use nacre_protocol::container_id;
use nacre_protocol::spec::Refused;
use ttrpc::Code;

/// Longest error text that a child sends to the agent, in bytes: its messages are bounded, and a
/// text may contain names of the request that are not.
const MAX_TEXT: usize = 4096;
/// Most characters of an invalid container id that an error quotes.
const MAX_ID: usize = 128;

/// Shortens an error text to [`MAX_TEXT`].
pub fn truncate(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

/// Why a request to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container has this id.
    #[error("container {id:?} not found")]
    ContainerNotFound { id: String },
    /// The container has no process with this exec id.
    #[error("process {exec_id:?} of container {id:?} not found")]
    ProcessNotFound { id: String, exec_id: String },
    /// The exec id is in use, or is empty, which is init's.
    #[error("process {exec_id:?} of container {id:?} already exists")]
    ProcessExists { id: String, exec_id: String },
    /// A terminal size for a process without a terminal.
    #[error("the process has no terminal")]
    NoTerminal,
    /// A signal for a process that has exited; the text is runc's, which callers look for.
    #[error("process already finished")]
    ProcessFinished,
    /// The container id is in use.
    #[error("container {id:?} already exists")]
    ContainerExists { id: String },
    /// A container id that cannot be a directory name.
    #[error("expected a container id of {rule}, got {id:?}", rule = container_id::RULE)]
    BadId { id: String },
    /// A field of the spec that the agent refuses.
    #[error("spec: {field}: {reason}")]
    BadSpec {
        field: Cow<'static, str>,
        reason: String,
    },
    /// Fields of the spec that the protocol's check refuses, each with its JSON path and the reason.
    #[error("spec: {0}")]
    Refused(#[from] Refused),
    /// A request with an invalid value.
    #[error("{what}")]
    BadRequest { what: String },
    /// The command cannot be executed; the text is runc's.
    #[error("{0}")]
    Command(String),
    /// The shim and the guest image are of different builds.
    #[error("the guest image is of build {agent}, the shim of build {shim}; install both from one build")]
    BuildMismatch { agent: String, shim: String },
    /// The container's state does not allow the request.
    #[error("cannot {action} container {id:?}: it is {state}")]
    WrongState {
        id: String,
        state: &'static str,
        action: &'static str,
    },
    /// A part of the pod's network cannot be set up.
    #[error("set up network: {0}")]
    Network(String),
    /// A step of a container's creation, or of an exec, failed.
    #[error("{0}")]
    Runtime(String),
    /// The child that was to become a container's init exited without a report.
    #[error("the container's init exited without a report: {0}")]
    InitDied(String),
    /// Nothing accepts a forwarded connection.
    #[error("connecting to port {port} of localhost: {source}")]
    Unreachable { port: u16, source: io::Error },
    /// A forwarded connection was reset, by the server or by the host.
    #[error("forwarding a connection to port {port}: {source}")]
    Reset { port: u16, source: io::Error },
    /// A system call failed.
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    /// A system call on a file failed.
    #[error("{what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: `what` names the operation and its object, as "mounting proc on /proc".
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }

    /// For `map_err`: `what` names the operation on the file `path`, as "reading".
    pub fn file<E: Into<io::Error>>(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            what,
            path,
            source: source.into(),
        }
    }

    /// The error that `field` of a spec, a JSON path, is refused for `reason`.
    pub fn bad_spec(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        let (field, reason) = (field.into(), reason.into());
        Self::BadSpec { field, reason }
    }

    /// The error that the container id `id` is not valid.
    pub fn bad_id(id: &str) -> Self {
        Self::BadId {
            id: id.chars().take(MAX_ID).collect(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::ContainerNotFound { .. } | Self::ProcessNotFound { .. } | Self::ProcessFinished => {
                Code::NOT_FOUND
            }
            Self::ContainerExists { .. } | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::BadId { .. }
            | Self::BadSpec { .. }
            | Self::Refused(_)
            | Self::BadRequest { .. }
            | Self::Command(_) => Code::INVALID_ARGUMENT,
            Self::BuildMismatch { .. } | Self::WrongState { .. } | Self::NoTerminal => {
                Code::FAILED_PRECONDITION
            }
            Self::Unreachable { .. } => Code::UNAVAILABLE,
            Self::Reset { .. } => Code::ABORTED,
            Self::Network(_)
            | Self::Runtime(_)
            | Self::InitDied(_)
            | Self::System { .. }
            | Self::File { .. } => Code::INTERNAL,
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
        let (code, text) = status(Error::ContainerNotFound { id: "a".into() });
        assert_eq!(
            (code, text.as_str()),
            (Code::NOT_FOUND, "container \"a\" not found")
        );
        let (code, text) = status(Error::ProcessFinished);
        assert_eq!(
            (code, text.as_str()),
            (Code::NOT_FOUND, "process already finished")
        );
        let (code, _) = status(Error::ProcessNotFound {
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
            field: "process.args".into(),
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
            action: "delete",
        });
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert_eq!(text, "cannot delete container \"a\": it is running");
    }

    #[test]
    fn forwarded_connections() {
        let source = || io::Error::from_raw_os_error(111);
        let (code, text) = status(Error::Unreachable {
            port: 80,
            source: source(),
        });
        assert_eq!(code, Code::UNAVAILABLE);
        assert!(
            text.starts_with("connecting to port 80 of localhost: Connection refused"),
            "{text}"
        );
        let (code, _) = status(Error::Reset {
            port: 80,
            source: source(),
        });
        assert_eq!(code, Code::ABORTED);
    }

    #[test]
    fn internal() {
        let source = io::Error::from_raw_os_error(2);
        let error = Error::file("reading", "/x")(source);
        let (code, text) = status(error);
        assert_eq!(code, Code::INTERNAL);
        assert!(text.starts_with("reading /x: No such file"), "{text}");
        assert_eq!(status(Error::Runtime("x".into())).0, Code::INTERNAL);
        assert_eq!(status(Error::InitDied("x".into())).0, Code::INTERNAL);
        assert_eq!(
            status(Error::system("x")(io::Error::from_raw_os_error(1))).0,
            Code::INTERNAL
        );
    }
}
