//! The command line that containerd gives a shim, in Go's notation: `-flag value`, `-flag=value`, one or two dashes,
//! then the action. Pure; called by `main`.

use std::path::PathBuf;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Makes the pod's daemon and prints its address.
    Start,
    /// Cleans up after a daemon that is gone.
    Delete,
    /// Prints a `RuntimeInfo` (containerd 2.x).
    Info,
    /// Prints the version.
    Version,
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What is to be done.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The container's id.
    pub id: String,
    /// The bundle, where it is given; else the working directory is it.
    pub bundle: Option<PathBuf>,
    /// More in the log.
    pub debug: bool,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "unknown flag -{0}; this program is run by containerd: -namespace NS -id ID start|delete, -info, -v"
    )]
    UnknownFlag(String),
    #[error("flag -{0} wants a value")]
    NoValue(String),
    #[error("unknown action {0:?}: start and delete are known")]
    UnknownAction(String),
    #[error("no action: this program is run by containerd with start or delete")]
    NoAction,
    #[error("-{0} is missing or empty")]
    Missing(&'static str),
}

impl Arguments {
    /// Parses all words after the program's name.
    ///
    /// # Errors
    /// [`Error`] where they are none that a shim knows.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut parsed = Self {
            action: Action::Version,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: None,
            debug: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                return parsed.with_action(&word);
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
                            .or_else(|| words.next())
                            .ok_or(Error::NoValue(name.into()))
                    };
                    match name {
                        "namespace" => parsed.namespace = value()?,
                        "address" => parsed.address = value()?,
                        "id" => parsed.id = value()?,
                        "bundle" => parsed.bundle = Some(value()?.into()),
                        // The daemon publishes by ttrpc and makes its own socket.
                        "publish-binary" | "socket" => drop(value()?),
                        _ => return Err(Error::UnknownFlag(name.into())),
                    }
                }
            }
        }
        Err(Error::NoAction)
    }

    fn with_action(self, word: &str) -> Result<Self, Error> {
        let action = match word {
            "start" => Action::Start,
            "delete" => Action::Delete,
            _ => return Err(Error::UnknownAction(word.into())),
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
    fn reads_what_containerd_writes() {
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
    fn asks_of_the_program_itself_need_nothing_else() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn says_what_is_wrong() {
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
