//! Runs behaviours under one runtime, group by group. The behaviours of a group share a container.

use anyhow::{Context as _, Result, anyhow, ensure};

use super::process::strip_error_context;
use super::{Behaviour, Outcome, Procedure, Spec};
use crate::containerd::Runtime;
use crate::containerd::bundle::Bundle;
use crate::containerd::ctr::{Output, Run, ctr, fresh_id, remove_detached};
use crate::runner::grouped;

/// Record separator: ends the output of each script on both streams. No script prints it.
const MARK: char = '\u{1e}';

/// Groups the behaviours that can share a container; groups are in the order of their first behaviours.
pub fn groups(behaviours: &[&'static Behaviour]) -> Vec<Vec<&'static Behaviour>> {
    grouped(behaviours, can_share_container)
}

fn can_share_container(one: &Behaviour, other: &Behaviour) -> bool {
    match (&one.procedure, &other.procedure) {
        (Procedure::Script(a, _), Procedure::Script(b, _))
        | (Procedure::Exec(a, ..), Procedure::Exec(b, ..)) => a.name == b.name,
        _ => false,
    }
}

/// Runs each behaviour of `group` under `runtime`; returns an outcome or an error for each, in order.
pub fn run_group(group: &[&'static Behaviour], runtime: Runtime) -> Vec<Result<Outcome>> {
    let all = match group.first().map(|first| &first.procedure) {
        Some(Procedure::Script(spec, _)) => run_scripts(spec, group, runtime),
        Some(Procedure::Exec(spec, ..)) => run_execs(spec, group, runtime),
        Some(Procedure::Calls(_)) | None => Ok(group
            .iter()
            .map(|behaviour| run_calls(behaviour, runtime))
            .collect()),
    };
    all.unwrap_or_else(|error| {
        let text = format!("{error:#}");
        group.iter().map(|_| Err(anyhow!("{text}"))).collect()
    })
}

fn run_calls(behaviour: &Behaviour, runtime: Runtime) -> Result<Outcome> {
    match behaviour.procedure {
        Procedure::Calls(function) => function(runtime),
        Procedure::Script(..) | Procedure::Exec(..) => {
            Err(anyhow!("{} is not made of calls", behaviour.name))
        }
    }
}

/// Runs one container whose first process runs the scripts of `group` one after another.
fn run_scripts(spec: &Spec, group: &[&Behaviour], runtime: Runtime) -> Result<Vec<Result<Outcome>>> {
    let mut whole = String::new();
    for behaviour in group {
        if let Procedure::Script(_, lines) = behaviour.procedure {
            whole.push_str(&format!(
                "(\n{lines}\n) </dev/null; printf '{MARK}%s{MARK}' $?; printf '{MARK}' >&2\n"
            ));
        }
    }
    let bundle = Bundle::new(&["sh", "-c", &whole], spec.change)?;
    let output = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .output(&fresh_id(spec.name))?;
    Ok(split_outputs(&output, group.len()))
}

/// Splits the output of a container at the marks into the outcomes of `count` scripts. A script that the
/// container did not reach or finish becomes an error.
fn split_outputs(output: &Output, count: usize) -> Vec<Result<Outcome>> {
    let text = output.text();
    let mut stdout = text.split(MARK);
    let mut stderr = output.stderr.split_inclusive(MARK);
    (0..count)
        .map(|_| {
            let (out, code) = (stdout.next(), stdout.next());
            let errors = stderr.next().and_then(|errors| errors.strip_suffix(MARK));
            let (Some(out), Some(code), Some(errors)) = (out, code, errors) else {
                return Err(anyhow!(
                    "the container exited before the end of this script (exit code {:?}): {} {}",
                    output.code,
                    out.unwrap_or_default(),
                    output.stderr
                ));
            };
            Ok(Outcome {
                code: Some(code.parse().context("the exit code of a script")?),
                stdout: out.to_owned(),
                stderr: errors.to_owned(),
            })
        })
        .collect()
}

/// Starts one detached container and runs the commands of `group` in it, one exec process each.
fn run_execs(spec: &Spec, group: &[&Behaviour], runtime: Runtime) -> Result<Vec<Result<Outcome>>> {
    let bundle = Bundle::new(&["sleep", "1000000"], spec.change)?;
    let id = fresh_id(spec.name);
    Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    let outcome = group
        .iter()
        .enumerate()
        .map(|(number, behaviour)| match behaviour.procedure {
            Procedure::Exec(_, flags, command) => run_exec(&id, number, flags, command),
            Procedure::Script(..) | Procedure::Calls(_) => Err(anyhow!("{} is not an exec", behaviour.name)),
        })
        .collect();
    remove_detached(&id)?;
    Ok(outcome)
}

fn run_exec(id: &str, number: usize, flags: &[&str], command: &[&str]) -> Result<Outcome> {
    let name = format!("exec-{number}");
    let before = ["task", "exec", "--exec-id", &name];
    let arguments = before.iter().chain(flags).chain([&id]).chain(command);
    let output = ctr(arguments.copied())?;
    ensure!(output.code.is_some(), "ctr was killed by a signal: {output:?}");
    let mut outcome = strip_error_context(output.into());
    outcome.stderr = outcome.stderr.replace(id, "ID").replace(&name, "EXEC");
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_split_at_the_marks() {
        let output = Output {
            code: Some(0),
            stdout: b"one\n\x1e0\x1e\x1e7\x1ehalf".to_vec(),
            stderr: "\u{1e}no\n\u{1e}dead".to_owned(),
        };
        let outcome = split_outputs(&output, 3);
        let first = outcome.first().unwrap().as_ref().unwrap();
        assert_eq!(
            (first.code, first.stdout.as_str(), first.stderr.as_str()),
            (Some(0), "one\n", "")
        );
        let second = outcome.get(1).unwrap().as_ref().unwrap();
        assert_eq!(
            (second.code, second.stdout.as_str(), second.stderr.as_str()),
            (Some(7), "", "no\n")
        );
        let third = format!("{:#}", outcome.get(2).unwrap().as_ref().unwrap_err());
        assert!(third.contains("half") && third.contains("dead"), "{third}");
    }

    #[test]
    fn scripts_with_the_same_specification_are_one_group() {
        let groups = groups(&crate::parity::behaviours());
        let scripts: Vec<&str> = groups
            .iter()
            .filter_map(|group| match group.first()?.procedure {
                Procedure::Script(spec, _) => Some(spec.name),
                Procedure::Exec(..) | Procedure::Calls(_) => None,
            })
            .collect();
        let mut unique = scripts.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), scripts.len());
    }
}
