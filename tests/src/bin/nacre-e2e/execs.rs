//! Tests of many `ctr task exec` commands at a time: each returns its own output and exit code, and no memory
//! grows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, remove_detached};
use nacre_tests::leaks::nacre_processes;
use nacre_tests::memory;

use crate::{Test, core, long, test};

pub const TESTS: &[Test] = &[
    core("ten execs, five at a time", || run_execs(10, 5).map(drop)),
    test("50 execs, 10 at a time: all succeed and no memory grows", || {
        no_growth(50, 10)
    }),
    long("200 execs, 20 at a time: all succeed and no memory grows", || {
        no_growth(200, 20)
    }),
];

/// Memory use of the parts of a pod, in KiB.
#[derive(Debug, Clone, Copy)]
struct MemoryUse {
    /// Private memory of the shim.
    shim: u64,
    /// Private memory of the VMM without guest memory.
    vmm: u64,
    /// Anonymous memory in the guest: the agent, its helper and the container.
    guest: u64,
    /// Unreclaimable slab, kernel stacks and page tables of the guest kernel, which grow if tasks, files or
    /// sockets leak.
    kernel: u64,
}

impl MemoryUse {
    fn of(id: &str) -> Result<Self> {
        let private = |program: &str| -> Result<u64> {
            let found = nacre_processes()?;
            let (pid, _) = found
                .iter()
                .find(|(_, name)| name.starts_with(program))
                .with_context(|| format!("no {program} is running"))?;
            Ok(memory::of((*pid).into())?.own_kib)
        };
        let meminfo = ctr(["task", "exec", "--exec-id", "meminfo", id, "cat", "/proc/meminfo"])?.success()?;
        let line = |key: &str| -> Result<u64> {
            let line = meminfo.lines().find(|line| line.starts_with(key));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(number.with_context(|| format!("meminfo has no {key}"))?.parse()?)
        };
        Ok(Self {
            shim: private("containerd-shim-nacre")?,
            vmm: private("nacre-vmm")?,
            guest: line("AnonPages:")?,
            kernel: line("SUnreclaim:")? + line("KernelStack:")? + line("PageTables:")?,
        })
    }
}

/// Runs `count` execs in one container, `at_once` of them at a time; returns the memory use before and after.
fn run_execs(count: usize, at_once: usize) -> Result<(MemoryUse, MemoryUse)> {
    let id = fresh_id("execs");
    Run {
        command: &["sleep", "1000000"],
        ..Run::default()
    }
    .detach(&id)?;
    // Run some execs first, so that memory that is allocated once and kept does not count as growth.
    let memory = exec_all(&id, "warm", 3 * at_once, at_once)
        .and_then(|()| MemoryUse::of(&id))
        .and_then(|before| {
            exec_all(&id, "exec", count, at_once)?;
            Ok((before, MemoryUse::of(&id)?))
        });
    let processes = ctr(["task", "ps", &id])?.success()?;
    remove_detached(&id)?;
    ensure!(
        processes.lines().count() == 2,
        "expected only the first process to be left: {processes}"
    );
    memory
}

/// Runs `count` execs from `at_once` threads.
fn exec_all(id: &str, word: &str, count: usize, at_once: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            exec_one(id, word, number)?;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// Runs one exec and checks its exit code and output, which depend on `number`.
fn exec_one(id: &str, word: &str, number: usize) -> Result<()> {
    let name = format!("{word}-{number}");
    let script = format!("echo out {number}; echo err {number} >&2; exit {}", number % 100);
    let output = ctr(["task", "exec", "--exec-id", &name, id, "sh", "-c", &script])?;
    ensure!(
        output.code == Some(i32::try_from(number % 100)?)
            && output.text() == format!("out {number}\n")
            && output.stderr == format!("err {number}\n"),
        "exec {name} gave {output:?}"
    );
    Ok(())
}

fn no_growth(count: usize, at_once: usize) -> Result<()> {
    let (before, after) = run_execs(count, at_once)?;
    println!("        KiB before {count} execs {before:?}, after {after:?}");
    // The bounds allow for allocators' noise. A leak of 50 threads, or of the buffers of as many streams, exceeds them.
    for (name, before, after, bound) in [
        ("shim", before.shim, after.shim, 512),
        ("VMM", before.vmm, after.vmm, 1024),
        ("guest's programs", before.guest, after.guest, 1024),
        ("guest's kernel", before.kernel, after.kernel, 2048),
    ] {
        ensure!(
            after <= before + bound,
            "memory of the {name} grew from {before} to {after} KiB in {count} execs"
        );
    }
    Ok(())
}
