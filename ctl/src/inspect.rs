//! `nacre inspect ID`: a pod's state, the timeline of its start, the VM exits of its boot, and why it failed.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, anyhow};
use clap::Args;
use nacre_protocol::state::{Failure, PodSize, Timeline};
use serde_json::json;

use crate::pods::{self, Found};
use crate::process_memory::{PodProcesses, ProcessMemory};
use crate::ps::unreadable_lines;
use crate::text::{age, bar, bytes, mib, printable, table};

/// Width of the bars, cells.
const BAR: usize = 40;
/// Most console lines, steps and kinds of VM exits that are shown of each. A VMM that was taken over may
/// report more.
const MAX_LINES: usize = 128;

/// Arguments of `nacre inspect`.
#[derive(Args)]
pub struct Options {
    /// The pod's id, or the beginning of it.
    id: String,
    /// Look only for pods of this containerd namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Everything that the state directory has about one pod.
///
/// # Errors
/// If the state directory can't be listed, or if no pod or more than one matches.
pub fn run(root: &Path, options: &Options) -> Result<String> {
    let pods = pods::all(root)?;
    let failures = pods::failures(root)?;
    let unreadable = unreadable_lines(&pods.unreadable) + &unreadable_lines(&failures.unreadable);
    let (pods, failures) = (pods.entries, failures.entries);
    let known = pods
        .iter()
        .map(|found| (found.pod.namespace.as_str(), found.pod.id.as_str()))
        .chain(
            failures
                .iter()
                .map(|failure| (failure.namespace.as_str(), failure.id.as_str())),
        );
    let (namespace, id) = pods::choose(known, &options.id, options.namespace.as_deref())
        .map_err(|error| anyhow!("{}", format!("{error}\n{unreadable}").trim_end()))?;
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
    let mut out = format!("pod {} in namespace {}\n", printable(&id), printable(&namespace));
    if let Some(found) = found {
        write_state(&mut out, found);
    }
    if let Some(failure) = failure {
        write_failure(&mut out, failure);
    }
    if let Some(timeline) = timeline(found, failure) {
        write_start(&mut out, timeline);
        write_exits(&mut out, timeline);
    }
    if !unreadable.is_empty() {
        out.push('\n');
        out.push_str(&unreadable);
    }
    Ok(out)
}

/// The timeline of the existing pod, or else the one in the failure record.
fn timeline<'a>(found: Option<&'a Found>, failure: Option<&'a Failure>) -> Option<&'a Timeline> {
    found
        .and_then(|found| found.timeline.as_ref())
        .or(failure.map(|failure| &failure.timeline))
}

fn write_state(out: &mut String, found: &Found) {
    let pod = &found.pod;
    let memory = match pods::memory(pod) {
        Ok(Some(count)) => bytes(count),
        Ok(None) => "unknown: the pod's cgroup has no memory controller".to_owned(),
        Err(error) => format!("unknown: {}: {}", error.file.display(), error.error),
    };
    let (vcpus, vm_memory) = pod
        .size
        .as_ref()
        .map_or(("unknown".to_owned(), "unknown".to_owned()), size);
    let processes = PodProcesses::of(pod);
    let vmm = pod
        .vmm_pid
        .map_or("not started".to_owned(), |pid| process(pid, processes.vmm));
    let cgroup = pod
        .cgroup
        .as_ref()
        .map_or("not created".to_owned(), |path| path.display().to_string());
    let agent = pod.silent_since.map_or("answers".to_owned(), |since| {
        format!(
            "has not answered for {}: the guest stands still; SIGKILL to a container ends the VM",
            age(pods::seconds_since(since))
        )
    });
    let rows = [
        ["state".to_owned(), pods::state(pod)],
        ["age".to_owned(), age(pods::seconds_since(pod.created))],
        ["agent".to_owned(), agent],
        ["VMM".to_owned(), vmm],
        ["shim".to_owned(), process(pod.shim_pid, processes.shim)],
        ["vCPUs".to_owned(), vcpus],
        ["VM memory".to_owned(), vm_memory],
        ["memory used".to_owned(), memory],
        ["cgroup".to_owned(), cgroup],
        ["bundle".to_owned(), pod.bundle.display().to_string()],
        ["containerd".to_owned(), pod.containerd_address.clone()],
    ];
    write_indented(out, &table(&rows.map(Vec::from)));
}

/// A process and its memory, in words.
fn process(pid: u32, memory: Option<ProcessMemory>) -> String {
    let memory = memory.map_or_else(String::new, |memory| {
        let (private, shared) = (bytes(memory.private_bytes), bytes(memory.shared_bytes));
        format!(": {private} of its own, {shared} shared")
    });
    format!("pid {pid}{memory}")
}

/// A VM's vCPUs and its memory, in words.
fn size(size: &PodSize) -> (String, String) {
    let vcpus = format!("{} online, {} at most", size.vcpus, size.max_vcpus);
    let plugged = size.memory_mib.saturating_sub(size.boot_mib);
    let memory = format!(
        "{}: {} at boot, {} plugged in; {} at most",
        mib(size.memory_mib),
        mib(size.boot_mib),
        mib(plugged),
        mib(size.max_mib)
    );
    (vcpus, memory)
}

fn write_failure(out: &mut String, failure: &Failure) {
    let ago = age(pods::seconds_since(failure.time));
    let mut rows = vec![
        vec!["failed".to_owned(), format!("{ago} ago")],
        vec!["step".to_owned(), failure.step.clone()],
        vec!["reason".to_owned(), failure.reason.clone()],
    ];
    rows.extend(
        failure
            .hint
            .iter()
            .map(|hint| vec!["hint".to_owned(), hint.clone()]),
    );
    out.push('\n');
    write_indented(out, &table(&rows));
    if failure.console.is_empty() {
        out.push_str("  the guest's console is empty\n");
        return;
    }
    out.push_str("  last lines of the guest's console:\n");
    let skipped = failure.console.len().saturating_sub(MAX_LINES);
    for line in failure.console.iter().skip(skipped) {
        out.push_str(&format!("  | {}\n", printable(line)));
    }
}

fn write_start(out: &mut String, timeline: &Timeline) {
    let steps: Vec<(String, u64)> = timeline
        .steps
        .iter()
        .take(MAX_LINES)
        .map(|step| (printable(&step.name), step.done_us))
        .collect();
    let whole = steps.last().map_or(0, |(_, done_us)| *done_us);
    let ms = |us: u64| us as f64 / 1000.0;
    // Ignore the results: writing to a String never fails.
    let _ = writeln!(
        out,
        "\nstart: {:.1} ms since containerd executed the shim (columns: ms since then, ms of the step)",
        ms(whole)
    );
    let width = longest(steps.iter().map(|(name, _)| name));
    let mut before = 0;
    for (name, done_us) in steps {
        let took = done_us.saturating_sub(before);
        let bar = bar(before, done_us, whole, BAR);
        let _ = writeln!(
            out,
            "  {:8.1}  +{:7.1}  {name:width$}  {bar}",
            ms(done_us),
            ms(took)
        );
        before = before.max(done_us);
    }
    for (name, value) in [("from", &timeline.origin), ("kernel", &timeline.guest_kernel)] {
        if let Some(value) = value {
            let _ = writeln!(out, "\nguest {name}: {}", printable(value));
        }
    }
}

fn write_exits(out: &mut String, timeline: &Timeline) {
    if timeline.boot_exits.is_empty() {
        return;
    }
    let mut exits: Vec<(String, u64)> = timeline
        .boot_exits
        .iter()
        .map(|(kind, count)| (printable(kind), *count))
        .collect();
    exits.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
    exits.truncate(MAX_LINES);
    // No sum: KVM's counters and the VMM's count the same exits.
    out.push_str("\nVM exits until the guest's agent was ready (kvm: KVM's own counters):\n");
    let most = exits.first().map_or(0, |(_, count)| *count);
    let width = longest(exits.iter().map(|(kind, _)| kind));
    for (kind, count) in exits {
        out.push_str(&format!(
            "  {kind:width$}  {count:9}  {}\n",
            bar(0, count, most, BAR)
        ));
    }
}

/// The number of characters of the longest text.
fn longest<'a>(texts: impl Iterator<Item = &'a String>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

fn write_indented(out: &mut String, lines: &str) {
    for line in lines.lines() {
        out.push_str("  ");
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nacre_protocol::state::{FAILURES_DIR, POD_FILE, TIMELINE_FILE};

    use super::*;
    use crate::pods::tests::example;

    fn inspect(id: &str, json: bool) -> String {
        inspect_in(example().path(), id, json).unwrap()
    }

    fn inspect_in(root: &Path, id: &str, json: bool) -> Result<String> {
        let options = Options {
            id: id.to_owned(),
            namespace: None,
            json,
        };
        run(root, &options)
    }

    #[test]
    fn a_running_pod_shows_its_start() {
        let out = inspect("web-1", false);
        for text in [
            "running",
            "60.0  guest boots",
            "6.1.0-nacre",
            "VM exits until the guest's agent was ready",
        ] {
            assert!(out.contains(text), "{text:?} is missing in:\n{out}");
        }
        assert!(
            out.find("mmio_read").unwrap() < out.find("io_out").unwrap(),
            "most frequent first:\n{out}"
        );
    }

    #[test]
    fn a_silent_guest_shows_since_when_and_what_to_do() {
        let root = example();
        let file = root.path().join("1").join(POD_FILE);
        let mut pod: nacre_protocol::state::Pod = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let answering = inspect_in(root.path(), "web-1", false).unwrap();
        assert!(!answering.contains("does not answer"), "{answering}");
        pod.silent_since = Some(pod.created);
        fs::write(file, serde_json::to_vec(&pod).unwrap()).unwrap();
        let silent = inspect_in(root.path(), "web-1", false).unwrap();
        for text in [
            "running, but its guest does not answer",
            "has not answered for",
            "SIGKILL",
        ] {
            assert!(silent.contains(text), "{text:?} is missing in:\n{silent}");
        }
    }

    #[test]
    fn a_failed_pod_shows_reason_and_console() {
        let out = inspect("dead", false);
        for text in ["SIGKILL", "OOM killer", "| last\\u{7}words", "guest boots"] {
            assert!(out.contains(text), "{text:?} is missing in:\n{out}");
        }
    }

    #[test]
    fn json_has_failure_and_timeline() {
        let value: serde_json::Value = serde_json::from_str(&inspect("dead", true)).unwrap();
        assert_eq!(value["failure"]["reason"], "the VMM was killed by SIGKILL");
        assert_eq!(value["timeline"]["steps"][1]["done_us"], 61_500);
    }

    /// A guest chooses its kernel's release and console lines, a VMM taken over the names of steps and exits.
    #[test]
    fn texts_of_a_guest_are_escaped_and_bounded() {
        let root = example();
        let hostile = "\u{1b}]0;x\u{7}".repeat(400_000);
        let mut failure = pods::failures(root.path()).unwrap().entries.remove(0);
        failure.reason = hostile.clone();
        failure.console = vec!["\u{1b}[2J".repeat(2000); 1000];
        failure.timeline.guest_kernel = Some(hostile.clone());
        failure.timeline.steps[0].name = hostile.clone();
        let step = failure.timeline.steps[0].clone();
        failure.timeline.steps.extend(vec![step; 5]);
        failure
            .timeline
            .boot_exits
            .extend((0..10_000).map(|n| (format!("\u{1b}{n}"), n)));
        let file = root.path().join(FAILURES_DIR).join("3.json");
        fs::write(file, serde_json::to_vec(&failure).unwrap()).unwrap();
        let out = inspect_in(root.path(), "dead", false).unwrap();
        assert!(
            out.chars().all(|c| c == '\n' || !c.is_control()),
            "a control character reaches the terminal"
        );
        assert!(out.len() < 2 << 20, "{} bytes are shown", out.len());
        assert!(out.lines().count() < 3 * MAX_LINES + 30);
    }

    #[test]
    fn unreadable_files_are_named_and_hide_nothing_else() {
        let root = example();
        fs::write(root.path().join("1").join(TIMELINE_FILE), "{").unwrap();
        fs::write(root.path().join("2").join(POD_FILE), "{").unwrap();
        let out = inspect_in(root.path(), "web-1", false).unwrap();
        assert!(out.contains("running") && !out.contains("start:"), "{out}");
        assert!(
            out.contains("1/timeline.json: EOF") && out.contains("2/pod.json: EOF"),
            "{out}"
        );
        let error = inspect_in(root.path(), "web-2", false).unwrap_err().to_string();
        assert!(
            error.contains("nacre ps") && error.contains("2/pod.json: EOF"),
            "{error}"
        );
    }
}
