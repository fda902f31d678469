//! Tests of standard streams: all bytes arrive in order, and a slow reader blocks the writer.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Run, fresh_id, wait_readable};

use crate::{Test, test};

pub const TESTS: &[Test] = &[
    test("8 MiB of random bytes through stdout", bytes_out),
    test(
        "8 MiB of random bytes through stdin, cat and stdout",
        bytes_through,
    ),
    test("a slow reader blocks the writer", slow_reader),
    test(
        "output of an exited container arrives completely",
        output_after_exit,
    ),
];

const SIZE: usize = 8 << 20;

/// Writes random bytes to the file `random` in `directory` and returns them.
fn random_file(directory: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; SIZE];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    fs::write(directory.join("random"), &bytes)?;
    Ok(bytes)
}

fn expect_equal(got: &[u8], want: &[u8]) -> Result<()> {
    ensure!(
        got.len() == want.len(),
        "got {} bytes, expected {}",
        got.len(),
        want.len()
    );
    let first = got.iter().zip(want).position(|(a, b)| a != b);
    ensure!(first.is_none(), "the first different byte is at offset {first:?}");
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
    let output = run.output(&fresh_id("out"))?;
    ensure!(
        output.code == Some(0),
        "exit code {:?}: {}",
        output.code,
        output.stderr
    );
    expect_equal(&output.stdout, &bytes)
}

fn bytes_through() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bytes = random_file(directory.path())?;
    // ctr may hang if its standard input ends before the task exists, so that the test waits for a line
    // first.
    let run = Run {
        command: &["sh", "-c", "echo ready; exec cat"],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("through"))?;
    ensure!(running.line()? == "ready");
    let feeder = running.feed(bytes.clone())?;
    let output = running.wait_with_output()?;
    feeder
        .join()
        .ok()
        .context("the thread that writes standard input panicked")??;
    ensure!(
        output.code == Some(0),
        "exit code {:?}: {}",
        output.code,
        output.stderr
    );
    expect_equal(&output.stdout, &bytes)
}

/// Private memory of all shims, in bytes.
fn shims_memory() -> Result<u64> {
    let mut kib = 0;
    for (pid, name) in nacre_tests::leaks::nacre_processes()? {
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
    let script = "echo ready; i=0; while [ $i -lt 128 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /data/count; done";
    let run = Run {
        flags: &["--mount", &mount],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("slow"))?;
    ensure!(running.line()? == "ready");
    let count = directory.path().join("count");
    let stopped_at = wait_until_unchanged(&count, Duration::from_secs(4))?;
    ensure!(
        stopped_at * 65536 < 4 * 1024 * 1024,
        "the writer wrote {stopped_at} × 64 KiB although nothing was read"
    );
    let memory = shims_memory()?;
    ensure!(
        memory < 16 * 1024 * 1024,
        "the shim has {memory} bytes of private memory"
    );
    let output = running.wait_with_output()?;
    ensure!(output.code == Some(0), "{:?}: {}", output.code, output.stderr);
    ensure!(
        output.stdout.len() == 128 * 65536,
        "{} bytes arrived",
        output.stdout.len()
    );
    Ok(())
}

/// Waits until nothing has been written to `file`'s directory for `quiet`; returns the number in `file`, or
/// 0.
fn wait_until_unchanged(file: &Path, quiet: Duration) -> Result<usize> {
    let until = Instant::now() + nacre_tests::containerd::ctr::DEADLINE;
    let inotify = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(
        file.parent().context("the file has no parent directory")?,
        nix::sys::inotify::AddWatchFlags::IN_MODIFY,
    )?;
    while wait_readable(&inotify, Instant::now() + quiet).is_ok() {
        inotify.read_events()?;
        ensure!(
            Instant::now() < until,
            "the writer did not stop within the deadline"
        );
    }
    Ok(fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .parse()
        .unwrap_or(0))
}

fn output_after_exit() -> Result<()> {
    let id = fresh_id("tail");
    let run = Run {
        command: &["sh", "-c", "head -c 60000 /dev/zero; exit 5"],
        ..Run::default()
    };
    let output = run.output(&id)?;
    ensure!(
        output.code == Some(5) && output.stdout.len() == 60000,
        "{:?}, {} bytes",
        output.code,
        output.stdout.len()
    );
    let mut list = Command::new("ctr");
    list.args(["task", "list", "-q"]);
    ensure!(
        !nacre_tests::containerd::ctr::output(list)?.text().contains(&id),
        "the task still exists"
    );
    Ok(())
}
