//! Standard streams: every byte arrives, in order, and a slow reader stops the writer.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Run, fresh_id, wait_readable};

use crate::{Test, test};

pub const TESTS: &[Test] = &[
    test("32 MiB of random bytes through stdout", bytes_out),
    test(
        "32 MiB of random bytes through stdin, cat and stdout",
        bytes_through,
    ),
    test("a slow reader stops the writer", slow_reader),
    test(
        "output of a container that has ended arrives whole",
        output_after_end,
    ),
];

const MIB_32: usize = 32 * 1024 * 1024;

fn random_file(directory: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; MIB_32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    fs::write(directory.join("random"), &bytes)?;
    Ok(bytes)
}

fn same(got: &[u8], want: &[u8]) -> Result<()> {
    ensure!(
        got.len() == want.len(),
        "{} bytes of {} arrived",
        got.len(),
        want.len()
    );
    let first = got.iter().zip(want).position(|(a, b)| a != b);
    ensure!(first.is_none(), "bytes differ from offset {first:?}");
    Ok(())
}

fn bytes_out() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bytes = random_file(directory.path())?;
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:ro",
        directory.path().display()
    );
    let run = Run {
        flags: &["--mount", &mount],
        command: &["cat", "/data/random"],
        ..Run::default()
    };
    let output = run.finish(&fresh_id("out"))?;
    ensure!(
        output.code == Some(0),
        "exit code {:?}: {}",
        output.code,
        output.stderr
    );
    same(&output.stdout, &bytes)
}

fn bytes_through() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bytes = random_file(directory.path())?;
    // ctr itself may hang when its input ends before the task is there: the container speaks first.
    let run = Run {
        command: &["sh", "-c", "echo ready; exec cat"],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("through"))?;
    ensure!(running.line()? == "ready");
    let feeder = running.feed(bytes.clone())?;
    let output = running.finish()?;
    feeder.join().ok().context("the feeding thread panicked")??;
    ensure!(
        output.code == Some(0),
        "exit code {:?}: {}",
        output.code,
        output.stderr
    );
    same(&output.stdout, &bytes)
}

/// Bytes of private memory of all shims.
fn shims_memory() -> Result<u64> {
    let mut kib = 0;
    for (pid, name) in crate::leaks::nacre_processes()? {
        if name.starts_with("containerd-shim") {
            kib += nacre_tests::memory::of(pid.into())?.own_kib;
        }
    }
    Ok(kib * 1024)
}

fn slow_reader() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:rw",
        directory.path().display()
    );
    let script = "echo ready; i=0; while [ $i -lt 256 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /data/count; done";
    let run = Run {
        flags: &["--mount", &mount],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("slow"))?;
    ensure!(running.line()? == "ready");
    let count = directory.path().join("count");
    let stopped_at = wait_until_still(&count, Duration::from_secs(4))?;
    ensure!(
        stopped_at * 65536 < 4 * 1024 * 1024,
        "the writer wrote {stopped_at} × 64 KiB to a reader that does not read"
    );
    let memory = shims_memory()?;
    ensure!(memory < 16 * 1024 * 1024, "the shim holds {memory} bytes");
    let output = running.finish()?;
    ensure!(output.code == Some(0), "{:?}: {}", output.code, output.stderr);
    ensure!(
        output.stdout.len() == 256 * 65536,
        "{} bytes arrived",
        output.stdout.len()
    );
    Ok(())
}

/// Waits until nothing has been written to the number in `file` for `still`; gives it.
fn wait_until_still(file: &Path, still: Duration) -> Result<usize> {
    let until = Instant::now() + nacre_tests::containerd::ctr::DEADLINE;
    let inotify = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(
        file.parent().context("no parent")?,
        nix::sys::inotify::AddWatchFlags::IN_MODIFY,
    )?;
    while wait_readable(&inotify, Instant::now() + still).is_ok() {
        inotify.read_events()?;
        ensure!(Instant::now() < until, "the writer never stops");
    }
    Ok(fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .parse()
        .unwrap_or(0))
}

fn output_after_end() -> Result<()> {
    let id = fresh_id("tail");
    let run = Run {
        command: &["sh", "-c", "head -c 60000 /dev/zero; exit 5"],
        ..Run::default()
    };
    let output = run.finish(&id)?;
    ensure!(
        output.code == Some(5) && output.stdout.len() == 60000,
        "{:?}, {} bytes",
        output.code,
        output.stdout.len()
    );
    let mut list = Command::new("ctr");
    list.args(["task", "list", "-q"]);
    ensure!(
        !nacre_tests::containerd::ctr::finish(list)?.text().contains(&id),
        "the task is still there"
    );
    Ok(())
}
