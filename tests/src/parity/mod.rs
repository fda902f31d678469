//! What a container must do under Nacre as it does under runc: a list of behaviours, each one short entry, and what
//! runs and compares them. `nacre-parity` (src/bin/nacre-parity) is the program; docs/conformance.md names the behaviours.
//!
//! A container costs seconds in the lab, so scripts that want the same specification share a container, and so do the
//! commands that are executed in one.

mod compare;
mod execs;
mod files;
mod flags;
mod kernel;
mod process;
mod run;
mod specs;
mod streams;
mod tasks;
mod terminals;

use anyhow::Result;

pub use compare::{Verdict, compare};
pub use run::{groups, run_group};
pub use specs::Spec;

use crate::containerd::Runtime;
use crate::containerd::ctr::Output;

/// One thing that users see.
pub struct Behaviour {
    /// What it is, in words; unique.
    pub name: &'static str,
    /// JSON paths of the OCI runtime specification, and calls of the Task service (`Task.Exec`), that it shows.
    pub covers: &'static [&'static str],
    /// How it is looked at.
    pub how: How,
    /// Where Nacre is allowed to be otherwise.
    pub differs: Option<Differs>,
}

/// A way of looking.
pub enum How {
    /// Lines for `sh`, run by the first process of a container.
    Script(&'static Spec, &'static str),
    /// Flags of `ctr task exec` and a command, in a container that runs.
    Exec(&'static Spec, &'static [&'static str], &'static [&'static str]),
    /// Several calls, made from the host.
    Calls(fn(Runtime) -> Result<Seen>),
}

/// Why Nacre is otherwise, and some words that are then seen under it.
pub struct Differs {
    /// The reason, for the table.
    pub because: &'static str,
    /// In Nacre's output or error.
    pub nacre: &'static str,
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Seen {
    fn from(output: Output) -> Self {
        Self {
            code: output.code,
            stdout: output.text(),
            stderr: output.stderr,
        }
    }
}

impl Seen {
    /// Text alone.
    pub fn text(stdout: impl Into<String>) -> Self {
        Self {
            stdout: stdout.into(),
            ..Self::default()
        }
    }
}

/// All behaviours, in the order in which they are shown.
pub fn behaviours() -> Vec<&'static Behaviour> {
    [
        process::BEHAVIOURS,
        files::BEHAVIOURS,
        flags::BEHAVIOURS,
        kernel::BEHAVIOURS,
        execs::BEHAVIOURS,
        tasks::BEHAVIOURS,
        streams::BEHAVIOURS,
        terminals::BEHAVIOURS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

const fn behaviour(name: &'static str, covers: &'static [&'static str], how: How) -> Behaviour {
    Behaviour {
        name,
        covers,
        how,
        differs: None,
    }
}

const fn script(
    name: &'static str,
    covers: &'static [&'static str],
    spec: &'static Spec,
    lines: &'static str,
) -> Behaviour {
    behaviour(name, covers, How::Script(spec, lines))
}

const fn exec(
    name: &'static str,
    covers: &'static [&'static str],
    flags: &'static [&'static str],
    command: &'static [&'static str],
) -> Behaviour {
    behaviour(name, covers, How::Exec(&specs::DEFAULT, flags, command))
}

const fn calls(
    name: &'static str,
    covers: &'static [&'static str],
    of: fn(Runtime) -> Result<Seen>,
) -> Behaviour {
    behaviour(name, covers, How::Calls(of))
}

impl Behaviour {
    /// Nacre is otherwise for this reason, and these words are seen.
    const fn but(mut self, because: &'static str, nacre: &'static str) -> Self {
        self.differs = Some(Differs { because, nacre });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_behaviour_covers_something() {
        let all = behaviours();
        let mut names: Vec<&str> = all.iter().map(|behaviour| behaviour.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        for behaviour in all {
            assert!(!behaviour.covers.is_empty(), "{}", behaviour.name);
        }
    }
}
