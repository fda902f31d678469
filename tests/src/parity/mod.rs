//! The list of behaviours that Nacre must share with runc, and the code that runs and compares them.
//! `nacre-parity` (src/bin/nacre-parity) is the program that uses it; docs/conformance.md names the
//! behaviours.
//!
//! Starting a container takes seconds in the lab. Scripts that need the same specification therefore share
//! one container, and so do exec commands.

mod compare;
mod copies;
mod execs;
mod files;
mod flags;
mod kernel;
mod places;
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

/// Something that a user of a container can observe, the same under every runtime.
pub struct Behaviour {
    /// Unique among all behaviours; `nacre-parity NAME` selects by it.
    pub name: &'static str,
    /// What it tests: JSON paths of the OCI runtime specification (`process.cwd`) and calls of the Task
    /// service (`Task.Exec`).
    pub covers: &'static [&'static str],
    /// How to observe it.
    pub procedure: Procedure,
    /// Set if Nacre is allowed to differ from runc.
    pub allowed_difference: Option<AllowedDifference>,
}

/// How a behaviour is observed.
pub enum Procedure {
    /// Lines for `sh`, the first process of a container with this specification.
    Script(&'static Spec, &'static str),
    /// Flags of `ctr task exec` and a command, run in a container with this specification.
    Exec(&'static Spec, &'static [&'static str], &'static [&'static str]),
    /// A function that makes calls from the host.
    Calls(fn(Runtime) -> Result<Outcome>),
}

/// A difference between Nacre and runc that does not fail a behaviour. Its disappearance does.
pub struct AllowedDifference {
    /// Why they differ; printed in docs/conformance.md.
    pub reason: &'static str,
    /// Text that Nacre's output or error must contain.
    pub nacre_output: &'static str,
}

/// What is compared: how `ctr` or a script ended, and what it printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Exit code; None if there is none to compare.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.code,
            stdout: output.text(),
            stderr: output.stderr,
        }
    }
}

impl Outcome {
    /// An outcome of only standard output.
    pub fn text(stdout: impl Into<String>) -> Self {
        Self {
            stdout: stdout.into(),
            ..Self::default()
        }
    }
}

/// All behaviours, in the order of docs/conformance.md.
pub fn behaviours() -> Vec<&'static Behaviour> {
    [
        process::BEHAVIOURS,
        files::BEHAVIOURS,
        places::BEHAVIOURS,
        copies::BEHAVIOURS,
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

const fn behaviour(name: &'static str, covers: &'static [&'static str], procedure: Procedure) -> Behaviour {
    Behaviour {
        name,
        covers,
        procedure,
        allowed_difference: None,
    }
}

const fn script(
    name: &'static str,
    covers: &'static [&'static str],
    spec: &'static Spec,
    lines: &'static str,
) -> Behaviour {
    behaviour(name, covers, Procedure::Script(spec, lines))
}

const fn exec(
    name: &'static str,
    covers: &'static [&'static str],
    flags: &'static [&'static str],
    command: &'static [&'static str],
) -> Behaviour {
    behaviour(name, covers, Procedure::Exec(&specs::DEFAULT, flags, command))
}

const fn calls(
    name: &'static str,
    covers: &'static [&'static str],
    function: fn(Runtime) -> Result<Outcome>,
) -> Behaviour {
    behaviour(name, covers, Procedure::Calls(function))
}

impl Behaviour {
    /// Allows Nacre to differ from runc for `reason`, if its output or error contains `nacre_output`.
    const fn allow_difference(mut self, reason: &'static str, nacre_output: &'static str) -> Self {
        self.allowed_difference = Some(AllowedDifference { reason, nacre_output });
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
