//! Runs cases under one runtime handler, group by group. The cases of a group share a pod, and its execs a
//! container.

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;

use super::node::Node;
use super::pod::{Container, Pod};
use super::{Case, PodKind, Procedure};
use crate::parity::Outcome;
use crate::runner::grouped;

/// Groups the cases that share a pod; groups are in the order of their first cases.
pub fn groups(cases: &[&'static Case]) -> Vec<Vec<&'static Case>> {
    grouped(
        cases,
        |one, other| matches!((pod_of(one), pod_of(other)), (Some(one), Some(other)) if one.name == other.name),
    )
}

fn pod_of(case: &Case) -> Option<&'static PodKind> {
    match case.procedure {
        Procedure::Container(pod, ..) | Procedure::Exec(pod, _) | Procedure::InPod(pod, _) => Some(pod),
        Procedure::Calls(_) => None,
    }
}

/// Runs each case of `group` with pods of `node`; returns an outcome or an error for each, in order.
pub fn run_group(group: &[&'static Case], node: &Node) -> Vec<Result<Outcome>> {
    let pod = match group.first().and_then(|first| pod_of(first)) {
        None => return group.iter().map(|case| run_calls(case, node)).collect(),
        Some(kind) => node.pod((kind.change)()).context("running the shared pod"),
    };
    let all = pod.and_then(|pod| {
        let outcomes = run_in(&pod, group);
        pod.remove().context("removing the shared pod")?;
        outcomes
    });
    all.unwrap_or_else(|error| {
        let text = format!("{error:#}");
        group.iter().map(|_| Err(anyhow!("{text}"))).collect()
    })
}

fn run_calls(case: &Case, node: &Node) -> Result<Outcome> {
    match case.procedure {
        Procedure::Calls(function) => function(node),
        Procedure::Container(..) | Procedure::Exec(..) | Procedure::InPod(..) => {
            Err(anyhow!("{} is not made of calls", case.name))
        }
    }
}

fn run_in(pod: &Pod<'_>, group: &[&'static Case]) -> Result<Vec<Result<Outcome>>> {
    let mut shared: Option<Container<'_>> = None;
    let mut outcomes = Vec::with_capacity(group.len());
    for case in group {
        outcomes.push(match case.procedure {
            Procedure::Container(_, change, script) => pod.run(script, change()),
            Procedure::Exec(_, script) => {
                if shared.is_none() {
                    let made = pod.start("exec sleep 1000000", json!({}));
                    shared = Some(made.context("the container for execs")?);
                }
                shared.as_ref().context("no container")?.exec(script)
            }
            Procedure::InPod(_, function) => {
                let kept = shared.as_ref().map(|container| container.id.as_str());
                let outcome = function(pod);
                let removed = pod.remove_containers(kept);
                outcome.and_then(|outcome| removed.map(|()| outcome))
            }
            Procedure::Calls(_) => Err(anyhow!("{} is made of calls", case.name)),
        });
    }
    Ok(outcomes)
}
