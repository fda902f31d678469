//! Guests that are saved and continue in other processes: with a workload, which shows what the guest sees of
//! it, and with the agent, which shows how long that takes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::guest::{REHEARSE, REHEARSED, TEMPLATE_READY};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::vm::{DEADLINE, Options};
use super::vsock::{Conversation, dial_agent_port};
use super::workload::{self, Parameters};
use super::{Build, Test, Workload, test, until_connected};

/// The tests.
pub const TESTS: &[Test] = &[
    test("a saved guest goes on twice", |build| goes_on(build, 1)),
    test("a saved guest goes on twice, 2 vCPUs", |build| goes_on(build, 2)),
    test("a restored guest that is saved again goes on", saved_again),
    test("a snapshot of another guest or build is refused", refused),
    test(
        "a guest that has mounted the shared directory is not saved",
        mounted,
    ),
    test(
        "a guest that can't rehearse a pod's start is not saved",
        not_rehearsed,
    ),
    test("the agent goes on from a snapshot", agent_goes_on),
];

/// Waits for its next life, and reports what it sees there.
pub const WORKLOAD: Workload = Workload {
    name: "snapshot",
    run: live_twice,
};

/// The parameter of a workload that mounts the shared directory before it is to be saved.
const MOUNTS: &str = "mounts";
/// The parameter of a workload that reports a rehearsal that has failed.
const FAILS: &str = "fails";
/// How many pages are recorded of an agent that rehearses a pod's start. Until it waits, it writes about 220; the rest
/// is Setup's and the container's. As many as the last one are not copied ahead.
const REHEARSED_PAGES: Range<u32> = 400..1024;
/// How long the workload sleeps in its second life.
const SLEEP: Duration = Duration::from_millis(300);
/// By how much the guest's clock may go on besides the time for which the guest exists: until it is paused,
/// and while vCPUs wait for the host's CPU.
const SLACK: Duration = Duration::from_secs(3);
/// How often each kind of start is measured.
const MEASURED: usize = 5;

/// What the guest has seen.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// CLOCK_MONOTONIC in ms: when the guest was ready to be saved, and in its next life.
    saved_at_ms: u64,
    lives_at_ms: u64,
    /// How long [`SLEEP`] took, by both clocks.
    slept_ms: [u64; 2],
    /// The memory of the first life is that of the second one.
    remembers: bool,
    /// CPUs that are online.
    cpus: usize,
    /// Drawn in the second life, once the host has called.
    random: Vec<u8>,
    /// Drawn by the kernel when it was first read, which is then.
    boot_id: String,
}

fn goes_on(build: &Build, vcpus: u32) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let snapshot = directory.path().join("snapshot");
    let vcpus = vcpus.to_string();
    build.save(&Options {
        workload: WORKLOAD.name,
        arguments: &["--vcpus", &vcpus, "--save", &path(&snapshot)],
        ..Options::default()
    })?;
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let report = restored(build, &snapshot)?;
        ensure!(report.cpus.to_string() == vcpus, "{report:?}");
        drawn.push((report.random, report.boot_id));
    }
    let (one, other) = (&drawn[0], &drawn[1]);
    ensure!(
        one.0 != other.0 && one.1 != other.1,
        "both lives drew {one:?}, or a part of it"
    );
    Ok(())
}

/// Lets the guest of `snapshot` go on until it ends; checks what it reports.
fn restored(build: &Build, snapshot: &Path) -> Result<Report> {
    let started = Instant::now();
    let mut guest = build.restore(&["--restore", &path(snapshot)])?;
    let mut stream = guest.connect()?;
    // The guest waits for this order.
    stream.write_all(b"!")?;
    let report: Report = serde_json::from_value(guest.finish(DEADLINE)?)?;
    println!("        {report:?}");
    ensure!(report.remembers, "the guest's memory was lost: {report:?}");
    let passed = Duration::from_millis(report.lives_at_ms.saturating_sub(report.saved_at_ms));
    ensure!(
        report.lives_at_ms >= report.saved_at_ms,
        "time went back: {report:?}"
    );
    ensure!(
        passed < started.elapsed() + SLACK,
        "the time between save and restore was counted: {report:?}"
    );
    for slept in report.slept_ms {
        let slept = Duration::from_millis(slept);
        ensure!(slept >= SLEEP && slept < SLEEP + SLACK, "{report:?}");
    }
    Ok(report)
}

fn saved_again(build: &Build) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    build.save(&Options {
        workload: WORKLOAD.name,
        arguments: &["--save", &path(&first)],
        ..Options::default()
    })?;
    build.run_vmm(&["--restore", &path(&first), "--save", &path(&second)])?;
    let pages = differing_pages(&first.join("memory"), &second.join("memory"))?;
    // KVM writes a vCPU's kvm-clock to the guest's memory.
    ensure!(pages <= 2, "{pages} pages differ");
    restored(build, &second)?;
    Ok(())
}

/// How many pages of both files differ.
fn differing_pages(one: &Path, other: &Path) -> Result<usize> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    ensure!(
        one.metadata()?.len() == other.metadata()?.len(),
        "the sizes of memory differ"
    );
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut pages = 0;
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(pages);
        }
        other.read_exact(&mut right[..count])?;
        let pairs = left[..count].chunks(4096).zip(right[..count].chunks(4096));
        pages += pairs.filter(|(left, right)| left != right).count();
    }
}

fn refused(build: &Build) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let snapshot = directory.path().join("snapshot");
    build.save(&Options {
        workload: WORKLOAD.name,
        arguments: &["--save", &path(&snapshot)],
        ..Options::default()
    })?;
    let restore = || ["--restore".to_owned(), path(&snapshot)];
    let message = |build: &Build| -> Result<String> {
        let [option, directory] = restore();
        let output = build.vmm(&[&option, &directory]).output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let expect = |text: String, expected: &str| {
        ensure!(text.contains(expected), "expected {expected:?}, got {text:?}");
        println!("        {}", text.trim_end());
        Ok(())
    };
    let other = build.with_initramfs(build.agent_initramfs());
    expect(message(&other)?, "is not the initramfs of the snapshot")?;
    let memory = File::options().write(true).open(snapshot.join("memory"))?;
    let bytes = memory.metadata()?.len();
    memory.set_len(bytes - 4096)?;
    expect(message(build)?, "is not the memory of the snapshot")?;
    memory.set_len(bytes)?;
    fs::write(snapshot.join("state"), "nacresnp")?;
    expect(message(build)?, "state: truncated, or longer than it says\n")
}

fn mounted(build: &Build) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let saved = build.save(&Options {
        workload: WORKLOAD.name,
        parameters: &[(MOUNTS, "1")],
        arguments: &["--save", &path(&directory.path().join("snapshot"))],
        ..Options::default()
    });
    let text = saved.err().context("it was saved")?.to_string();
    let expected = "virtio fs in PCI slot 1 can't be saved: the guest has used it";
    ensure!(text.contains(expected), "{text}");
    Ok(())
}

fn not_rehearsed(build: &Build) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let snapshot = directory.path().join("snapshot");
    let saved = build.save(&Options {
        workload: WORKLOAD.name,
        parameters: &[(FAILS, "1")],
        arguments: &["--save", &path(&snapshot)],
        ..Options::default()
    });
    let text = saved.err().context("it was saved")?.to_string();
    let expected = "rehearsing a pod's start in the guest that was saved: Setup: refused";
    ensure!(text.contains(expected), "{text}");
    let restored = build.run_vmm(&["--restore", &path(&snapshot)]);
    ensure!(restored.is_err(), "what was written of it can be restored");
    Ok(())
}

/// Boots and restores the agent in turns, and prints how long each takes from the execution of the VMM.
fn agent_goes_on(build: &Build) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let snapshot = directory.path().join("snapshot");
    let build = build.with_initramfs(build.agent_initramfs());
    let saved = build.run_vmm(&["--save", &path(&snapshot)])?;
    let written = saved
        .lines()
        .find(|line| line.contains(" pages at once"))
        .with_context(|| format!("no number of pages: {saved}"))?;
    println!("        {written}");
    ensure!(!saved.contains("reports its free pages"), "{saved}");
    let mut words = written.split(' ');
    let pages = words.find_map(|word| word.parse::<u32>().ok());
    ensure!(
        pages.is_some_and(|pages| REHEARSED_PAGES.contains(&pages)),
        "{written}"
    );
    let shared = directory.path().join("shared");
    fs::create_dir(&shared)?;
    let (mut cold, mut restored) = (Vec::new(), Vec::new());
    for _ in 0..MEASURED {
        cold.push(until_ready(&build, &shared, &[])?);
        restored.push(until_ready(&build, &shared, &["--restore", &path(&snapshot)])?);
    }
    for (name, starts) in [("cold", cold), ("restored", restored)] {
        let median = |of: fn(&Start) -> f64| {
            let mut values: Vec<f64> = starts.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "        {name}: the agent connects after {:.0} ms ({:.0} ms in the guest), {:.0} exits, {:.0} pages were mapped",
            median(|start| start.total_ms),
            median(|start| start.guest_ms),
            median(|start| start.exits),
            median(|start| start.mapped),
        );
    }
    Ok(())
}

/// What a start has cost.
struct Start {
    /// From the execution of the VMM until the agent has connected.
    total_ms: f64,
    /// From the guest's first instruction on.
    guest_ms: f64,
    exits: f64,
    /// Pages, of whatever size, that KVM has mapped into the guest at a page fault.
    mapped: f64,
}

/// Starts a guest until its agent connects.
fn until_ready(build: &Build, shared: &Path, arguments: &[&str]) -> Result<Start> {
    let mut command = build.vmm(arguments);
    command
        .arg("--share")
        .arg(shared)
        .args(["--until-ready", "--exits"]);
    let (connected, text) = until_connected(command)?;
    let before = |mark: &str| {
        let line = text.lines().find(|line| line.ends_with(mark));
        let word = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        word.unwrap_or(0.0)
    };
    let guest = text
        .split("the agent connected ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    Ok(Start {
        total_ms: connected.as_secs_f64() * 1000.0,
        guest_ms: guest.context("no duration")?,
        exits: before("kvm exits"),
        mapped: before("kvm pf_fixed"),
    })
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn live_twice(parameters: &Parameters) -> Result<Value> {
    if parameters.get::<String>(MOUNTS).is_ok() {
        workload::mount_shared()?;
    }
    // Where the kernel has put it, and with what it was filled, is known to the first life only.
    let memory: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_ne_bytes).collect();
    let saved_at_ms = now_ms(ClockId::Monotonic);
    let mut ready = dial_agent_port()?;
    ready.write_all(&[TEMPLATE_READY])?;
    // An error or the end: the VM continues from its snapshot.
    let mut byte = [0];
    if matches!(ready.read(&mut byte), Ok(1)) {
        ensure!(byte == [REHEARSE], "the host has sent {byte:?}");
        let mut rehearsal = dial_agent_port()?;
        let fails = parameters.get::<String>(FAILS).is_ok();
        rehearsal.write_all(if fails { b"Setup: refused" } else { REHEARSED })?;
        // This life ends here, with its VMM.
        rehearsal.read_exact(&mut [0])?;
    }
    let lives_at_ms = now_ms(ClockId::Monotonic);
    workload::mount_shared()?;
    let mut conversation = Conversation::accept()?;
    conversation.stream.read_exact(&mut [0])?;
    let clocks = [ClockId::Monotonic, ClockId::Realtime];
    let before = clocks.map(now_ms);
    #[allow(clippy::disallowed_methods, reason = "this is what the clocks measure")]
    std::thread::sleep(SLEEP);
    let slept_ms = [0, 1].map(|index: usize| now_ms(clocks[index]).saturating_sub(before[index]));
    let mut random = vec![0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let report = Report {
        saved_at_ms,
        lives_at_ms,
        slept_ms,
        remembers: (0..1_u32 << 20).flat_map(u32::to_ne_bytes).eq(memory),
        cpus: std::thread::available_parallelism()?.get(),
        random,
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
    };
    Ok(json!(report))
}

fn now_ms(clock: ClockId) -> u64 {
    let now = Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
