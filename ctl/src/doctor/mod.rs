//! `nacre doctor`: checks what a host needs to run pods. Each check reports what it found and, if it failed,
//! how to fix it. The checks are in [`host`], [`install`], [`containerd`] and [`kvm`]; this file runs them in
//! this order and prints the results. It never changes the host.

mod containerd;
mod host;
mod install;
mod kvm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::text::{print, printable};

/// Arguments of `nacre doctor`.
#[derive(Args)]
pub struct Options {
    /// Print JSON: a list of checks.
    #[arg(long)]
    json: bool,
    /// Path of containerd's socket.
    #[arg(
        long,
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The requirement is met.
    Ok,
    /// Pods run, but with a limitation.
    Warning,
    /// Pods can't run.
    Failed,
    /// Not checked, because an earlier check failed.
    Skipped,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Failed => "FAIL",
            Self::Skipped => "skip",
        }
    }
}

/// A check with its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    group: &'static str,
    name: &'static str,
    status: Status,
    /// What was found, one line.
    found: String,
    /// What to do, one or more lines; present for warnings and failures.
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            group: "",
            name,
            status: Status::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: Status::Warning,
            fix: Some(fix.into()),
            ..Self::ok(name, found)
        }
    }

    fn failed(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: Status::Failed,
            fix: Some(fix.into()),
            ..Self::ok(name, found)
        }
    }

    fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            status: Status::Skipped,
            ..Self::ok(name, why)
        }
    }
}

/// Runs all checks, and prints the results of each group before the next group runs (with `--json`, all at
/// the end).
///
/// # Errors
/// If standard output can't be written.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut all = Vec::new();
    let groups: [(&'static str, &dyn Fn() -> Vec<Check>); 4] = [
        ("host", &host::checks),
        ("installation", &install::checks),
        ("containerd", &|| containerd::checks(&options.address)),
        ("kvm", &kvm::checks),
    ];
    for (group, checks) in groups {
        let found: Vec<Check> = checks()
            .into_iter()
            .map(|check| Check { group, ..check })
            .collect();
        if !options.json {
            print(&lines(group, &found))?;
        }
        all.extend(found);
    }
    let failed = all.iter().filter(|check| check.status == Status::Failed).count();
    print(&if options.json {
        format!("{:#}\n", serde_json::to_value(&all)?)
    } else {
        summary(&all)
    })?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn lines(group: &str, checks: &[Check]) -> String {
    let mut out = format!("{group}\n");
    for check in checks {
        let (word, name) = (check.status.word(), check.name);
        out.push_str(&format!("  {word:4}  {name:20}  {}\n", printable(&check.found)));
        for line in check.fix.iter().flat_map(|fix| fix.lines()) {
            out.push_str(&format!("        {:20}  → {}\n", "", printable(line)));
        }
    }
    out
}

fn summary(checks: &[Check]) -> String {
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let verdict = match count(Status::Failed) {
        0 => "this host can run Nacre's pods",
        _ => "this host cannot run Nacre's pods",
    };
    let counts = [Status::Ok, Status::Warning, Status::Failed, Status::Skipped]
        .map(|status| format!("{} {}", count(status), status.word()));
    format!("\n{verdict}: {}\n", counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_shows_its_fix_and_is_counted() {
        let checks = [
            Check::ok("a", "fine"),
            Check::failed("b", "broken\u{7}", "first do this\nthen that"),
        ];
        let shown = lines("host", &checks);
        assert!(
            shown.contains("FAIL  b") && shown.contains("broken\\u{7}"),
            "{shown}"
        );
        assert!(
            shown.contains("→ first do this\n") && shown.contains("→ then that\n"),
            "{shown}"
        );
        assert!(summary(&checks).contains("cannot run") && summary(&checks).contains("1 ok, 0 warn, 1 FAIL"));
        assert!(!summary(&checks[..1]).contains("not"));
    }

    #[test]
    fn every_failed_check_on_this_host_has_a_fix() {
        let groups = [
            host::checks(),
            install::checks(),
            containerd::checks("/no/such.sock".as_ref()),
            kvm::checks(),
        ];
        for check in groups.iter().flatten() {
            let wants_fix = [Status::Failed, Status::Warning].contains(&check.status);
            assert_eq!(
                wants_fix,
                check.fix.as_ref().is_some_and(|fix| !fix.is_empty()),
                "{check:?}"
            );
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }
}
