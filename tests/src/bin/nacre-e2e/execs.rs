//! `ctr task exec` in numbers: all of them right, several at a time, and nothing grows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, remove_detached};
use nacre_tests::memory;

use crate::leaks::nacre_processes;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("ten execs, five at a time", || crowd(10, 5).map(drop)),
    test(
        "200 execs, 20 at a time: all right, and no memory grows",
        two_hundred,
    ),
];

/// KiB: what each part of a pod has in memory for itself.
#[derive(Debug, Clone, Copy)]
struct Figures {
    shim: u64,
    vmm: u64,
    /// Anonymous memory of the whole guest: the agent's, its helper's and the container's.
    guest: u64,
    /// What the guest's kernel has for itself: tasks, files, sockets that were forgotten.
    kernel: u64,
}

impl Figures {
    fn of(id: &str) -> Result<Self> {
        let own = |word: &str| -> Result<u64> {
            let found = nacre_processes()?;
            let (pid, _) = found
                .iter()
                .find(|(_, name)| name.starts_with(word))
                .with_context(|| format!("no {word} runs"))?;
            Ok(memory::of((*pid).into())?.own_kib)
        };
        let meminfo = ctr(["task", "exec", "--exec-id", "meminfo", id, "cat", "/proc/meminfo"])?.success()?;
        let line = |key: &str| -> Result<u64> {
            let line = meminfo.lines().find(|line| line.starts_with(key));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(number.with_context(|| format!("meminfo has no {key}"))?.parse()?)
        };
        Ok(Self {
            shim: own("containerd-shim-nacre")?,
            vmm: own("nacre-vmm")?,
            guest: line("AnonPages:")?,
            kernel: line("SUnreclaim:")? + line("KernelStack:")? + line("PageTables:")?,
        })
    }
}

/// Runs `count` execs in one container, `at_once` of them at a time; gives the figures before and after.
fn crowd(count: usize, at_once: usize) -> Result<(Figures, Figures)> {
    let id = fresh_id("crowd");
    Run {
        command: &["sleep", "1000000"],
        ..Run::default()
    }
    .detach(&id)?;
    // What is allocated once and kept does not count as growth.
    let seen = all(&id, "warm", at_once, at_once)
        .and_then(|()| Figures::of(&id))
        .and_then(|before| {
            all(&id, "exec", count, at_once)?;
            Ok((before, Figures::of(&id)?))
        });
    let processes = ctr(["task", "ps", &id])?.success()?;
    remove_detached(&id)?;
    ensure!(
        processes.lines().count() == 2,
        "more than the first process is left: {processes}"
    );
    seen
}

fn all(id: &str, word: &str, count: usize, at_once: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            one(id, word, number)?;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn one(id: &str, word: &str, number: usize) -> Result<()> {
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

fn two_hundred() -> Result<()> {
    let (before, after) = crowd(200, 20)?;
    println!("        KiB before 200 execs {before:?}, after {after:?}");
    // Pages that an allocator happens to touch; 200 forgotten streams or threads would be far more.
    for (name, before, after, grown) in [
        ("shim", before.shim, after.shim, 512),
        ("VMM", before.vmm, after.vmm, 1024),
        ("guest's programs", before.guest, after.guest, 512),
        ("guest's kernel", before.kernel, after.kernel, 2048),
    ] {
        ensure!(
            after <= before + grown,
            "memory of the {name} grew from {before} to {after} KiB in 200 execs"
        );
    }
    Ok(())
}
