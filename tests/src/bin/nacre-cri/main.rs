//! Runs each case of the CRI suite under runc and under Nacre and prints one row for each: equal, allowed,
//! alone (Nacre only), or DIFFERENT with both outcomes. Run by `tests/lab/run --cri`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use nacre_tests::containerd::Runtime;
use nacre_tests::cri::node::{Node, prepare_cgroup};
use nacre_tests::cri::{Case, cases, connect_to, echo_datagrams, groups, print_changes, run_group, serve_at};
use nacre_tests::leaks::Snapshot;
use nacre_tests::parity::{Outcome, Verdict, compare};
use nacre_tests::runner;
use nacre_tests::selection::{Selection, command_with};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, statfs};
use serde_json::Value;

/// Compares Nacre with runc, case by case, through the CRI of the containerd at CONTAINERD_ADDRESS.
#[derive(Parser)]
struct Arguments {
    /// Print the cases, without running them.
    #[arg(long)]
    list: bool,
    /// Run under one runtime only and print the outcomes.
    #[arg(long)]
    only: Option<Runtime>,
    /// Also run the cases that take long.
    #[arg(long)]
    long: bool,
    /// Run the cases with redis, nginx, Python and PostgreSQL, and no others; in a lab with --software.
    #[arg(long)]
    software: bool,
    /// The runtime handler of Nacre's pods: nacre, or nacre-sandbox, which has no pause container.
    #[arg(long, default_value = "nacre")]
    handler: String,
    /// Answer datagrams at this port with themselves; cases run this in pods.
    #[arg(long, hide = true)]
    echo_datagrams: Option<u16>,
    /// Print the changes of this directory; a case runs this in pods.
    #[arg(long, hide = true)]
    watch: Option<PathBuf>,
    /// Serve connections to a socket at this path; a case runs this in pods.
    #[arg(long, hide = true)]
    serve: Option<PathBuf>,
    /// Connect to a socket at this path; a case runs this in pods.
    #[arg(long, hide = true)]
    connect: Option<PathBuf>,
    #[command(flatten)]
    selection: Selection,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(port) = arguments.echo_datagrams {
        return runner::exit_code("nacre-cri", &echo_datagrams(port).map(|()| 0));
    }
    if let Some(directory) = arguments.watch {
        return runner::exit_code("nacre-cri", &print_changes(&directory).map(|()| 0));
    }
    if let Some(path) = arguments.serve {
        return runner::exit_code("nacre-cri", &serve_at(&path).map(|()| 0));
    }
    if let Some(path) = arguments.connect {
        return runner::exit_code("nacre-cri", &connect_to(&path).map(|()| 0));
    }
    let version = std::env::var("NACRE_LAB_CONTAINERD").unwrap_or_else(|_| "1.6".to_owned());
    let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
    let chosen: Vec<&'static Case> = cases()
        .into_iter()
        .filter(|case| arguments.selection.selects(case.name, &names))
        .filter(|case| arguments.long || !case.long || arguments.selection.names_one(case.name))
        .filter(|case| case.needs_software() == arguments.software)
        .filter(|case| case.runs_under(&version, &arguments.handler))
        .filter(|case| !case.needs_id_maps || has_id_maps())
        .collect();
    if arguments.list {
        for case in &chosen {
            println!("{}", case.name);
        }
        return ExitCode::SUCCESS;
    }
    runner::exit_code("nacre-cri", &run(&arguments, &chosen))
}

/// Whether containerd's files are on ext4, as in a lab with `--ext4`.
fn has_id_maps() -> bool {
    statfs("/var/lib/containerd").is_ok_and(|found| found.filesystem_type() == EXT4_SUPER_MAGIC)
}

/// Both nodes; a runtime that is not wanted has none.
struct Nodes {
    runc: Option<Node>,
    nacre: Option<Node>,
}

fn run(arguments: &Arguments, chosen: &[&'static Case]) -> Result<usize> {
    let started = Instant::now();
    prepare_cgroup()?;
    let nodes = Nodes {
        runc: (arguments.only != Some(Runtime::Nacre))
            .then(|| Node::new(Runtime::Runc, "runc"))
            .transpose()?,
        nacre: (arguments.only != Some(Runtime::Runc))
            .then(|| Node::new(Runtime::Nacre, &arguments.handler))
            .transpose()?,
    };
    // The first pod and container make what stays: the bridge, directories of containerd.
    if let Some(node) = nodes.runc.as_ref().or(nodes.nacre.as_ref()) {
        let pod = node.pod(Value::Null).context("a first pod")?;
        pod.create("true", Value::Null).context("a first container")?;
        pod.remove()?;
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for (number, group) in groups(chosen).into_iter().enumerate() {
        if !arguments.selection.take(number)? {
            continue;
        }
        let at = Instant::now();
        let outcomes = run_both(&group, &nodes);
        for (case, (runc, nacre)) in group.iter().zip(&outcomes) {
            if report(case, runc.as_ref(), nacre.as_ref(), arguments.only.is_some()) {
                passed += 1;
            } else {
                let options = case.options(&arguments.handler, has_id_maps());
                println!("    alone: {}", command_with(&options, case.name));
                failed.push(case.name);
            }
        }
        println!("           ({:.1} s)", at.elapsed().as_secs_f64());
    }
    println!(
        "{} cases in {:.0} s",
        passed + failed.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(runner::print_totals(passed, &failed))
}

type Outcomes = Vec<(Option<Result<Outcome>>, Option<Result<Outcome>>)>;

/// The outcomes of `group` under runc and under Nacre, each under the leak check.
fn run_both(group: &[&'static Case], nodes: &Nodes) -> Outcomes {
    let under = |node: Option<&Node>| match node {
        Some(node) => run_checked(group, node).into_iter().map(Some).collect(),
        None => group.iter().map(|_| None).collect::<Vec<_>>(),
    };
    // A case for Nacre alone is made of calls, so it is alone in its group.
    let is_compared = group.iter().all(|case| !case.only_nacre);
    let runc = under(nodes.runc.as_ref().filter(|_| is_compared));
    runc.into_iter().zip(under(nodes.nacre.as_ref())).collect()
}

/// Runs `cases`; what they leave behind makes the last of them fail.
fn run_checked(cases: &[&'static Case], node: &Node) -> Vec<Result<Outcome>> {
    let before = Snapshot::take().context("taking a snapshot of the host before the group");
    let mut outcomes = run_group(cases, node);
    let left = before.and_then(|before| {
        node.remove_leftovers()?;
        before
            .compare(runner::EXIT_DEADLINE)
            .with_context(|| format!("the pods of {}", node.handler))
    });
    if let (Err(error), Some(last)) = (left, outcomes.last_mut()) {
        *last = match std::mem::replace(last, Ok(Outcome::default())) {
            Ok(_) => Err(error),
            Err(first) => Err(first.context(format!("{error:#}"))),
        };
    }
    outcomes
}

/// Why Nacre alone may fail with `error`.
fn allowed_error(case: &Case, error: &anyhow::Error) -> Option<&'static str> {
    let allowed = case.allowed_difference.as_ref()?;
    format!("{error:#}")
        .contains(allowed.nacre_output)
        .then_some(allowed.reason)
}

/// Prints a row for `case`; true if it passed.
fn report(case: &Case, runc: Option<&Result<Outcome>>, nacre: Option<&Result<Outcome>>, show: bool) -> bool {
    let verdict = match (runc, nacre) {
        (Some(runc), Some(nacre)) => compare(case.allowed_difference.as_ref(), runc, nacre),
        (Some(Ok(_)), None) | (None, Some(Ok(_))) => Verdict::Equal,
        (None, Some(Err(error))) => match allowed_error(case, error) {
            Some(reason) => Verdict::Allowed(reason),
            None => Verdict::Different(format!("{error:#}")),
        },
        (Some(Err(error)), None) => Verdict::Different(format!("{error:#}")),
        (None, None) => Verdict::Equal,
    };
    let (word, more) = match &verdict {
        Verdict::Equal if runc.is_some() && nacre.is_some() => ("equal", String::new()),
        Verdict::Equal => ("alone", String::new()),
        Verdict::Allowed(reason) => ("allowed", format!(" ({reason})")),
        Verdict::Different(_) => ("DIFFERENT", String::new()),
    };
    println!("{word:10} {}{more}", case.name);
    if let Verdict::Different(outcomes) = &verdict {
        println!("    {}", outcomes.trim_end().replace('\n', "\n    "));
    } else if show && let Some(Ok(outcome)) = runc.or(nacre) {
        println!("    {}", outcome.to_string().trim_end().replace('\n', "\n    "));
    }
    !matches!(verdict, Verdict::Different(_))
}
