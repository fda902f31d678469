//! Parses the command line that containerd gives a shim, in the notation of Go's flag package: `-flag value`
//! or `-flag=value`, with one dash or two, then the action. Pure; called by `main`.

use std::path::PathBuf;

/// What the program is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the pod's daemon and print its address.
    Start,
    /// Clean up after a daemon that has exited.
    Delete,
    /// Print a `RuntimeInfo` (containerd 2.x).
    Info,
    /// Print the version.
    Version,
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What the program is to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The path of containerd's gRPC socket.
    pub address: String,
    /// The container's id.
    pub id: String,
    /// The bundle; None if it is the working directory.
    pub bundle: Option<PathBuf>,
    /// containerd's own log has the level "debug".
    pub debug: bool,
}

/// Why a command line is not valid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "unknown flag -{0}; this program is run by containerd: -namespace NS -id ID start|delete, -info, -v"
    )]
    UnknownFlag(String),
    #[error("flag -{0} needs a value")]
    NoValue(String),
    #[error("unknown action {0:?}: expected start or delete")]
    UnknownAction(String),
    #[error("no action: this program is run by containerd with start or delete")]
    NoAction,
    #[error("-{0} is missing or empty")]
    Missing(&'static str),
}

impl Arguments {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// [`Error`] with the flag or action that is not valid.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut parsed = Self {
            action: Action::Version,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: None,
            debug: false,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                return parsed.with_action(&argument);
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" => {
                    return Ok(Self {
                        action: Action::Version,
                        ..parsed
                    });
                }
                "info" => {
                    return Ok(Self {
                        action: Action::Info,
                        ..parsed
                    });
                }
                "debug" => parsed.debug = inline.is_none_or(|value| value != "false"),
                _ => {
                    let mut value = || {
                        inline
                            .clone()
                            .or_else(|| arguments.next())
                            .ok_or(Error::NoValue(name.into()))
                    };
                    match name {
                        "namespace" => parsed.namespace = value()?,
                        "address" => parsed.address = value()?,
                        "id" => parsed.id = value()?,
                        "bundle" => parsed.bundle = Some(value()?.into()),
                        // Not needed: the daemon publishes events by ttrpc and binds its own socket.
                        "publish-binary" | "socket" => drop(value()?),
                        _ => return Err(Error::UnknownFlag(name.into())),
                    }
                }
            }
        }
        Err(Error::NoAction)
    }

    fn with_action(self, name: &str) -> Result<Self, Error> {
        let action = match name {
            "start" => Action::Start,
            "delete" => Action::Delete,
            _ => return Err(Error::UnknownAction(name.into())),
        };
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(Error::Missing(name));
            }
        }
        Ok(Self { action, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Error> {
        Arguments::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn containerd_s_command_lines_are_parsed() {
        let start = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start",
        );
        let start = start.unwrap();
        assert_eq!(start.action, Action::Start);
        assert_eq!(
            (
                start.namespace.as_str(),
                start.address.as_str(),
                start.id.as_str()
            ),
            ("k8s.io", "/run/c.sock", "a")
        );
        assert!(start.debug);
        let delete = parse("--namespace=n --id=b -bundle /b delete").unwrap();
        assert_eq!(delete.action, Action::Delete);
        assert_eq!(delete.bundle, Some("/b".into()));
    }

    #[test]
    fn version_and_info_need_no_other_flags() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn invalid_flags_and_actions_are_named() {
        assert_eq!(parse("-namespace n start").unwrap_err(), Error::Missing("id"));
        assert_eq!(
            parse("-namespace n -id").unwrap_err(),
            Error::NoValue("id".into())
        );
        assert_eq!(parse("-frob").unwrap_err(), Error::UnknownFlag("frob".into()));
        assert_eq!(
            parse("-namespace n -id a stop").unwrap_err(),
            Error::UnknownAction("stop".into())
        );
        assert_eq!(parse("-namespace n -id a").unwrap_err(), Error::NoAction);
    }
}
