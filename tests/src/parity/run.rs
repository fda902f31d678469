//! Looks at behaviours under one runtime, a group at a time: those of a group share a container.

use anyhow::{Context as _, Result, anyhow, ensure};

use super::process::reason;
use super::{Behaviour, How, Seen, Spec};
use crate::containerd::Runtime;
use crate::containerd::bundle::Bundle;
use crate::containerd::ctr::{Output, Run, ctr, fresh_id, remove_detached};

/// Ends what a script wrote to a stream; no script writes one itself.
const MARK: char = '\u{1e}';

/// Behaviours that can share a container, in order of their first.
pub fn groups(behaviours: &[&'static Behaviour]) -> Vec<Vec<&'static Behaviour>> {
    let mut groups: Vec<Vec<&'static Behaviour>> = Vec::new();
    for behaviour in behaviours {
        let found = groups
            .iter_mut()
            .find(|group| group.first().is_some_and(|first| shared(first, behaviour)));
        match found {
            Some(group) => group.push(behaviour),
            None => groups.push(vec![behaviour]),
        }
    }
    groups
}

fn shared(one: &Behaviour, other: &Behaviour) -> bool {
    match (&one.how, &other.how) {
        (How::Script(a, _), How::Script(b, _)) | (How::Exec(a, ..), How::Exec(b, ..)) => a.name == b.name,
        _ => false,
    }
}

/// Looks at each behaviour of a group under `runtime`.
pub fn run_group(group: &[&'static Behaviour], runtime: Runtime) -> Vec<Result<Seen>> {
    let all = match group.first().map(|first| &first.how) {
        Some(How::Script(spec, _)) => scripts(spec, group, runtime),
        Some(How::Exec(spec, ..)) => execs(spec, group, runtime),
        Some(How::Calls(_)) | None => Ok(group.iter().map(|behaviour| call(behaviour, runtime)).collect()),
    };
    all.unwrap_or_else(|error| {
        let text = format!("{error:#}");
        group.iter().map(|_| Err(anyhow!("{text}"))).collect()
    })
}

fn call(behaviour: &Behaviour, runtime: Runtime) -> Result<Seen> {
    match behaviour.how {
        How::Calls(of) => of(runtime),
        How::Script(..) | How::Exec(..) => Err(anyhow!("{} is no call", behaviour.name)),
    }
}

/// One container whose first process runs all scripts, one after the other.
fn scripts(spec: &Spec, group: &[&Behaviour], runtime: Runtime) -> Result<Vec<Result<Seen>>> {
    let mut whole = String::new();
    for behaviour in group {
        if let How::Script(_, lines) = behaviour.how {
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
    .finish(&fresh_id(spec.name))?;
    Ok(split(&output, group.len()))
}

/// A script's output begins where the one before it ended. One that was not reached is an error.
fn split(output: &Output, count: usize) -> Vec<Result<Seen>> {
    let text = output.text();
    let mut stdout = text.split(MARK);
    let mut stderr = output.stderr.split_inclusive(MARK);
    (0..count)
        .map(|_| {
            let (out, code) = (stdout.next(), stdout.next());
            let errors = stderr.next().and_then(|errors| errors.strip_suffix(MARK));
            let (Some(out), Some(code), Some(errors)) = (out, code, errors) else {
                return Err(anyhow!(
                    "the container ended before (exit code {:?}): {} {}",
                    output.code,
                    out.unwrap_or_default(),
                    output.stderr
                ));
            };
            Ok(Seen {
                code: Some(code.parse().context("the exit code of a script")?),
                stdout: out.to_owned(),
                stderr: errors.to_owned(),
            })
        })
        .collect()
}

/// One container in the background, with an exec each.
fn execs(spec: &Spec, group: &[&Behaviour], runtime: Runtime) -> Result<Vec<Result<Seen>>> {
    let bundle = Bundle::new(&["sleep", "1000000"], spec.change)?;
    let id = fresh_id(spec.name);
    Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    let seen = group
        .iter()
        .enumerate()
        .map(|(number, behaviour)| match behaviour.how {
            How::Exec(_, flags, command) => execute(&id, number, flags, command),
            How::Script(..) | How::Calls(_) => Err(anyhow!("{} is no exec", behaviour.name)),
        })
        .collect();
    remove_detached(&id)?;
    Ok(seen)
}

fn execute(id: &str, number: usize, flags: &[&str], command: &[&str]) -> Result<Seen> {
    let name = format!("exec-{number}");
    let before = ["task", "exec", "--exec-id", &name];
    let arguments = before.iter().chain(flags).chain([&id]).chain(command);
    let output = ctr(arguments.copied())?;
    ensure!(output.code.is_some(), "ctr was ended by a signal: {output:?}");
    let mut seen = reason(output.into());
    seen.stderr = seen.stderr.replace(id, "ID").replace(&name, "EXEC");
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_at_the_marks() {
        let output = Output {
            code: Some(0),
            stdout: b"one\n\x1e0\x1e\x1e7\x1ehalf".to_vec(),
            stderr: "\u{1e}no\n\u{1e}dead".to_owned(),
        };
        let seen = split(&output, 3);
        let first = seen.first().unwrap().as_ref().unwrap();
        assert_eq!(
            (first.code, first.stdout.as_str(), first.stderr.as_str()),
            (Some(0), "one\n", "")
        );
        let second = seen.get(1).unwrap().as_ref().unwrap();
        assert_eq!(
            (second.code, second.stdout.as_str(), second.stderr.as_str()),
            (Some(7), "", "no\n")
        );
        let third = format!("{:#}", seen.get(2).unwrap().as_ref().unwrap_err());
        assert!(third.contains("half") && third.contains("dead"), "{third}");
    }

    #[test]
    fn those_of_one_specification_are_a_group() {
        let groups = groups(&crate::parity::behaviours());
        let scripts: Vec<&str> = groups
            .iter()
            .filter_map(|group| match group.first()?.how {
                How::Script(spec, _) => Some(spec.name),
                How::Exec(..) | How::Calls(_) => None,
            })
            .collect();
        let mut unique = scripts.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), scripts.len());
    }
}
