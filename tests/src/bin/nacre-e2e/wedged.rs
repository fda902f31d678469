//! Guests that stand still, and processes that no signal ends: both are noticed, and SIGKILL of the container ends the
//! VM. The shim's tests show the same with a fake agent (`shim/tests/service/hung.rs`); here the guest is real.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::state::{POD_FILE, STATE_ROOT};
use nacre_tests::containerd::ctr::{Foreground, Run, fresh_id, output, wait_readable};
use nacre_tests::hung_file_system::HungFileSystem;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;

use crate::{Test, test};

pub const TESTS: &[Test] = &[
    test(
        "a guest that stands still is reported within 30 s, and SIGKILL ends it",
        stands_still,
    ),
    test("SIGKILL that has no effect for 10 s ends the VM", unkillable),
];

/// Longest time from when a guest stands still to its report.
const REPORT_LIMIT: Duration = Duration::from_secs(30);
/// Longest time from SIGKILL to the end of a container that does not react, which has 10 s to do so. Two programs of
/// containerd start and end in this time, in the lab on the one CPU that the guest takes.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Real-time processes without an end take all CPUs of the guest: nothing else runs there any more, not its agent
/// either. The program of util-linux is the host's, since busybox has none.
const HOG: &str = "echo -1 >/proc/sys/kernel/sched_rt_runtime_us; echo wedges; sleep 1
libraries=/host/lib/x86_64-linux-gnu
for cpu in $(seq $(nproc)); do
    $libraries/ld-linux-x86-64.so.2 --library-path $libraries /host/bin/chrt -f 99 sh -c 'while :; do :; done' &
done
wait";

fn inspect(id: &str) -> Result<Value> {
    let mut inspect = Command::new("nacre");
    inspect.args(["inspect", "--json", id]);
    Ok(serde_json::from_str(&output(inspect)?.success()?)?)
}

/// The directory of pod `id`.
fn directory_of(id: &str) -> Result<PathBuf> {
    let is_of = |directory: &Path| -> Option<bool> {
        let pod: Value = serde_json::from_slice(&fs::read(directory.join(POD_FILE)).ok()?).ok()?;
        Some(pod["id"] == id)
    };
    let entries = fs::read_dir(STATE_ROOT)?.flatten();
    let mut directories = entries.map(|entry| entry.path());
    directories
        .find(|directory| is_of(directory) == Some(true))
        .with_context(|| format!("{id} has no pod directory"))
}

/// Waits until the pod is recorded as silent. The file is replaced each time.
fn until_silent(id: &str, until: Instant) -> Result<()> {
    let directory = directory_of(id)?;
    let written = Inotify::init(InitFlags::IN_CLOEXEC)?;
    written.add_watch(&directory, AddWatchFlags::IN_MOVED_TO)?;
    loop {
        let pod: Value = serde_json::from_slice(&fs::read(directory.join(POD_FILE))?)?;
        if pod["silent_since"].is_u64() {
            return Ok(());
        }
        wait_readable(&written, until).with_context(|| format!("it is not reported: {pod:#}"))?;
        written.read_events()?;
    }
}

/// Sends SIGKILL to the container, which must end in time; returns the reason that is recorded.
fn kill(running: Foreground) -> Result<String> {
    let begun = Instant::now();
    let id = running.id.clone();
    running.kill("SIGKILL")?;
    let output = running.wait_with_output()?;
    let took = begun.elapsed();
    ensure!(output.code == Some(137), "{output:?}");
    ensure!(took < KILL_LIMIT, "it ended after {took:?}");
    println!("        ended {:.1} s after SIGKILL", took.as_secs_f64());
    let failure = inspect(&id)?["failure"].clone();
    ensure!(failure["step"] == "kill", "{failure:#}");
    Ok(failure["reason"].as_str().unwrap_or_default().to_owned())
}

fn stands_still() -> Result<()> {
    let run = Run {
        flags: &[
            "--privileged",
            "--mount",
            "type=bind,src=/usr,dst=/host,options=rbind:ro",
        ],
        command: &["sh", "-c", HOG],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("wedged"))?;
    ensure!(running.line()? == "wedges");
    let begun = Instant::now();
    until_silent(&running.id, begun + REPORT_LIMIT)?;
    println!("        reported after {:.1} s", begun.elapsed().as_secs_f64());
    let mut inspect = Command::new("nacre");
    inspect.args(["inspect", &running.id]);
    let text = output(inspect)?.success()?;
    let says_what_to_do = text.contains("stands still") && text.contains("SIGKILL");
    ensure!(says_what_to_do, "nacre inspect: {text}");
    let reason = kill(running)?;
    ensure!(reason.contains("has not exited 10 s after SIGKILL"), "{reason}");
    Ok(())
}

/// The container's init waits for a file of a file system whose server is hung, which no signal ends: the guest's kernel has sent the
/// request to the VMM. The agent answers all the time.
fn unkillable() -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let hung = HungFileSystem::new(directory.path().join("hung"))?;
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:rw",
        directory.path().display()
    );
    let run = Run {
        flags: &["--mount", &mount],
        command: &["sh", "-c", "echo up; exec cat /data/hung/file"],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("unkillable"))?;
    ensure!(running.line()? == "up");
    hung.until_asked()?;
    let reason = kill(running)?;
    drop(hung);
    ensure!(reason.contains("has not exited 10 s after SIGKILL"), "{reason}");
    Ok(())
}
