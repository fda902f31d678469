//! `nacre inspect ID`: state, the timeline of the start, exits during boot, and why a pod died.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use nacre_protocol::state::{Failure, Timeline};
use serde_json::json;

use crate::pods::{self, Found};
use crate::text::{age, bytes, clean, columns, stretch};

/// Width of the bars, cells.
const BAR: usize = 40;

/// What to inspect.
#[derive(Args)]
pub struct Options {
    /// The pod's id or the beginning of it.
    id: String,
    /// Only pods of this containerd namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Everything known of one pod.
///
/// # Errors
/// Where the state can't be read, or no pod or several match.
pub fn run(root: &Path, options: &Options) -> Result<String> {
    let pods = pods::all(root)?;
    let failures = pods::failures(root)?;
    let known = pods
        .iter()
        .map(|found| (found.pod.namespace.as_str(), found.pod.id.as_str()))
        .chain(
            failures
                .iter()
                .map(|failure| (failure.namespace.as_str(), failure.id.as_str())),
        );
    let (namespace, id) = pods::choose(known, &options.id, options.namespace.as_deref())?;
    let found = pods
        .iter()
        .find(|found| found.pod.id == id && found.pod.namespace == namespace);
    let failure = failures
        .iter()
        .find(|failure| failure.id == id && failure.namespace == namespace);
    if options.json {
        let value = json!({
            "id": id, "namespace": namespace,
            "pod": found.map(|found| &found.pod),
            "timeline": timeline(found, failure),
            "failure": failure,
        });
        return Ok(format!("{value:#}\n"));
    }
    let mut out = format!("pod {} in namespace {}\n", clean(&id), clean(&namespace));
    if let Some(found) = found {
        running(&mut out, found)?;
    }
    if let Some(failure) = failure {
        died(&mut out, failure);
    }
    if let Some(timeline) = timeline(found, failure) {
        started(&mut out, timeline);
    }
    Ok(out)
}

/// The start of the pod that is there, else of the one that failed.
fn timeline<'a>(found: Option<&'a Found>, failure: Option<&'a Failure>) -> Option<&'a Timeline> {
    found
        .and_then(|found| found.timeline.as_ref())
        .or(failure.map(|failure| &failure.timeline))
}

fn running(out: &mut String, found: &Found) -> Result<()> {
    let pod = &found.pod;
    let pid = |pid: Option<u32>| pid.map_or("none yet".to_owned(), |pid| pid.to_string());
    let memory = pods::memory(pod)?.map_or("unknown: no memory controller".to_owned(), bytes);
    let cgroup = pod
        .cgroup
        .as_ref()
        .map_or("none yet".to_owned(), |path| path.display().to_string());
    let rows = [
        ["state".to_owned(), pods::state(pod)],
        ["age".to_owned(), age(pods::seconds_since(pod.created))],
        ["VMM".to_owned(), format!("pid {}", pid(pod.vmm_pid))],
        ["shim".to_owned(), format!("pid {}", pod.shim_pid)],
        ["memory".to_owned(), memory],
        ["cgroup".to_owned(), cgroup],
        ["bundle".to_owned(), pod.bundle.display().to_string()],
        ["containerd".to_owned(), clean(&pod.containerd_address)],
    ];
    indented(out, &columns(&rows.map(Vec::from)));
    Ok(())
}

fn died(out: &mut String, failure: &Failure) {
    let ago = age(pods::seconds_since(failure.time));
    let mut rows = vec![
        vec![
            "failed".to_owned(),
            format!("{ago} ago, at: {}", clean(&failure.step)),
        ],
        vec!["reason".to_owned(), clean(&failure.reason)],
    ];
    rows.extend(
        failure
            .hint
            .as_ref()
            .map(|hint| vec!["hint".to_owned(), clean(hint)]),
    );
    out.push('\n');
    indented(out, &columns(&rows));
    if failure.console.is_empty() {
        out.push_str("  the guest's console has no line\n");
        return;
    }
    out.push_str("  last lines of the guest's console:\n");
    for line in &failure.console {
        out.push_str(&format!("  | {}\n", clean(line)));
    }
}

fn started(out: &mut String, timeline: &Timeline) {
    let whole = timeline.steps.last().map_or(0, |step| step.done_us);
    let ms = |us: u64| us as f64 / 1000.0;
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "\nstart: {:.1} ms since containerd executed the shim",
        ms(whole)
    );
    let width = timeline
        .steps
        .iter()
        .map(|step| step.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut before = 0;
    for step in &timeline.steps {
        let took = step.done_us.saturating_sub(before);
        let name = clean(&step.name);
        let bar = stretch(before, step.done_us, whole, BAR);
        let _ = writeln!(
            out,
            "  {:8.1}  +{:7.1}  {name:width$}  {bar}",
            ms(step.done_us),
            ms(took)
        );
        before = before.max(step.done_us);
    }
    if let Some(kernel) = &timeline.guest_kernel {
        let _ = writeln!(out, "\nguest kernel: {}", clean(kernel));
    }
    if timeline.boot_exits.is_empty() {
        return;
    }
    let mut exits: Vec<_> = timeline.boot_exits.iter().collect();
    exits.sort_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
    // KVM's own counters stand beside what the VMM saw of the same exits, so there is no sum.
    let _ = writeln!(
        out,
        "\nVM exits from the guest's first instruction until its agent was ready (kvm: KVM's own counters):"
    );
    let most = exits.first().map_or(0, |(_, count)| **count);
    let width = exits
        .iter()
        .map(|(kind, _)| kind.chars().count())
        .max()
        .unwrap_or(0);
    for (kind, count) in exits {
        let _ = writeln!(
            out,
            "  {:width$}  {count:9}  {}",
            clean(kind),
            stretch(0, *count, most, BAR)
        );
    }
}

fn indented(out: &mut String, lines: &str) {
    for line in lines.lines() {
        out.push_str("  ");
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::example;

    fn inspect(id: &str, json: bool) -> String {
        let root = example();
        run(
            root.path(),
            &Options {
                id: id.to_owned(),
                namespace: None,
                json,
            },
        )
        .unwrap()
    }

    #[test]
    fn a_running_pod_shows_its_start() {
        let out = inspect("web-1", false);
        for words in [
            "running",
            "60.0  guest boots",
            "6.1.0-nacre",
            "first instruction until its agent was ready",
        ] {
            assert!(out.contains(words), "{words:?} is missing in:\n{out}");
        }
        assert!(
            out.find("mmio_read").unwrap() < out.find("io_out").unwrap(),
            "most frequent first:\n{out}"
        );
    }

    #[test]
    fn a_dead_pod_tells_why_and_its_last_words() {
        let out = inspect("dead", false);
        for words in ["SIGKILL", "OOM killer", "| last\\u{7}words", "guest boots"] {
            assert!(out.contains(words), "{words:?} is missing in:\n{out}");
        }
    }

    #[test]
    fn json_has_the_same() {
        let value: serde_json::Value = serde_json::from_str(&inspect("dead", true)).unwrap();
        assert_eq!(value["failure"]["reason"], "the VMM was killed by SIGKILL");
        assert_eq!(value["timeline"]["steps"][1]["done_us"], 61_500);
    }
}
