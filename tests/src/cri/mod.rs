//! The CRI suite: what a Kubernetes node asks of containerd, as cases that run with runc and with Nacre in one
//! lab run and are compared. The program is `nacre-cri`; docs/lab.md tells how to run it.

mod cases;
mod grpc;
mod log;
pub mod node;
pub mod pod;
mod run;
mod session;
mod wire;

pub use cases::{cases, connect_to, echo_datagrams, print_changes, serve_at};
pub use run::{groups, run_group};

use anyhow::Result;
use serde_json::Value;

use crate::parity::{AllowedDifference, Outcome};
use crate::selection::Options;
use node::Node;
use pod::Pod;

/// The image with software from Debian packages, which a lab has with `--software` (`tests/lab/software`).
pub const SOFTWARE: &str = "localhost/software:lab";

/// The runtime handler whose pods have no pause container.
pub const SANDBOX_API_HANDLER: &str = "nacre-sandbox";

/// Something that a pod's owner can observe.
pub struct Case {
    /// Unique; `nacre-cri NAME` selects by it.
    pub name: &'static str,
    /// How it is observed.
    pub procedure: Procedure,
    /// The first version of containerd, as `2.1`, that has what the case needs.
    pub since: &'static str,
    /// The same for pods without a pause container.
    pub sandbox_api_since: &'static str,
    /// Whether it takes more than half a minute: only `--long` runs it.
    pub long: bool,
    /// Whether containerd's files must be on a file system with id maps, as in a lab with `--ext4`.
    pub needs_id_maps: bool,
    /// Whether runc has nothing to compare with: it runs under Nacre alone, and what it ensures is the test.
    pub only_nacre: bool,
    /// Set if Nacre is allowed to differ from runc.
    pub allowed_difference: Option<AllowedDifference>,
}

/// How a case is observed.
pub enum Procedure {
    /// `sh -c SCRIPT`, run to its end as a container of a shared pod; the function returns the change of its
    /// configuration.
    Container(&'static PodKind, fn() -> Value, &'static str),
    /// `sh -c SCRIPT`, executed in a container that the shared pod has for that.
    Exec(&'static PodKind, &'static str),
    /// A function that makes calls for a shared pod; the containers that it leaves are removed.
    InPod(&'static PodKind, fn(&Pod<'_>) -> Result<Outcome>),
    /// A function that makes calls, and its own pods.
    Calls(fn(&Node) -> Result<Outcome>),
}

/// A kind of pod that cases share.
pub struct PodKind {
    /// Unique.
    pub name: &'static str,
    /// The change of the pod's configuration.
    pub change: fn() -> Value,
}

const fn case(name: &'static str, procedure: Procedure) -> Case {
    Case {
        name,
        procedure,
        since: "1.6",
        sandbox_api_since: "2.0",
        long: false,
        needs_id_maps: false,
        only_nacre: false,
        allowed_difference: None,
    }
}

const fn container(
    name: &'static str,
    pod: &'static PodKind,
    change: fn() -> Value,
    script: &'static str,
) -> Case {
    case(name, Procedure::Container(pod, change, script))
}

const fn exec(name: &'static str, pod: &'static PodKind, script: &'static str) -> Case {
    case(name, Procedure::Exec(pod, script))
}

const fn in_pod(
    name: &'static str,
    pod: &'static PodKind,
    function: fn(&Pod<'_>) -> Result<Outcome>,
) -> Case {
    case(name, Procedure::InPod(pod, function))
}

const fn calls(name: &'static str, function: fn(&Node) -> Result<Outcome>) -> Case {
    case(name, Procedure::Calls(function))
}

impl Case {
    /// Needs containerd `version`.
    const fn since(mut self, version: &'static str) -> Self {
        self.since = version;
        self
    }

    /// Needs containerd `version` if the pod has no pause container.
    const fn sandbox_api_since(mut self, version: &'static str) -> Self {
        self.sandbox_api_since = version;
        self
    }

    /// Takes long.
    const fn long(mut self) -> Self {
        self.long = true;
        self
    }

    /// Needs id maps of containerd's files.
    const fn needs_id_maps(mut self) -> Self {
        self.needs_id_maps = true;
        self
    }

    /// Has nothing that runc could be compared with.
    const fn only_nacre(mut self) -> Self {
        self.only_nacre = true;
        self
    }

    /// Nacre may differ for `reason`, if its output or error contains `nacre_output`.
    const fn allow_difference(mut self, reason: &'static str, nacre_output: &'static str) -> Self {
        self.allowed_difference = Some(AllowedDifference { reason, nacre_output });
        self
    }

    /// Whether it needs the image [`SOFTWARE`].
    pub fn needs_software(&self) -> bool {
        self.name.starts_with("software: ")
    }

    /// What a command that runs it alone needs, with pods of runtime handler `handler`, in a lab with id maps of
    /// containerd's files or one without.
    pub fn options(&self, handler: &str, has_id_maps: bool) -> Options {
        let (lab, program) = match (self.needs_software(), has_id_maps) {
            (true, _) => ("--software ", "--software "),
            (false, true) => ("--cri --ext4 ", ""),
            (false, false) => ("--cri ", ""),
        };
        let handler = match handler {
            "nacre" => String::new(),
            other => format!("--handler {other} "),
        };
        Options {
            lab: lab.to_owned(),
            program: format!("{program}{handler}"),
        }
    }

    /// Whether containerd `version` has what it needs, with pods of runtime handler `handler`.
    pub fn runs_under(&self, version: &str, handler: &str) -> bool {
        fn numbers(version: &str) -> Vec<u32> {
            version
                .split('.')
                .filter_map(|number| number.parse().ok())
                .collect()
        }
        let has = |since| numbers(version) >= numbers(since);
        has(self.since) && (handler != SANDBOX_API_HANDLER || has(self.sandbox_api_since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_alone_has_the_same_lab_and_handler() {
        let software = calls("software: x", |_| Ok(Outcome::default()));
        let other = calls("x", |_| Ok(Outcome::default()));
        for (case, handler, has_id_maps, lab, program) in [
            (&other, "nacre", false, "--cri ", ""),
            (
                &other,
                SANDBOX_API_HANDLER,
                true,
                "--cri --ext4 ",
                "--handler nacre-sandbox ",
            ),
            (&software, "nacre", false, "--software ", "--software "),
        ] {
            let options = case.options(handler, has_id_maps);
            assert_eq!((&*options.lab, &*options.program), (lab, program));
        }
    }

    #[test]
    fn names_are_unique_and_versions_are_compared_by_number() {
        let all = cases();
        let mut names: Vec<&str> = all.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let is_grouped = |case: &&Case| !matches!(case.procedure, Procedure::Calls(_));
        assert!(!all.iter().copied().filter(is_grouped).any(|case| case.only_nacre));
        let case = calls("x", |_| Ok(Outcome::default()))
            .since("1.10")
            .sandbox_api_since("2.3");
        for (version, with_pause, without) in [
            ("1.9", false, false),
            ("1.10", true, false),
            ("2.1", true, false),
            ("2.4", true, true),
        ] {
            assert_eq!(case.runs_under(version, "nacre"), with_pause, "{version}");
            assert_eq!(
                case.runs_under(version, SANDBOX_API_HANDLER),
                without,
                "{version}"
            );
        }
    }
}
