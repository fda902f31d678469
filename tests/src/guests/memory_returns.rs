//! A guest that uses memory and frees it: within seconds the host has it back, by the free page reporting of
//! the balloon, which the VM gets while it runs.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::vsock::Conversation;
use super::workload::{self, Parameters};
use super::{Build, Options, Test, Workload, test};
use crate::memory;

/// The tests.
pub const TESTS: &[Test] = &[test(
    "256 MiB that a guest frees return within 5 s",
    memory_returns,
)];

/// Allocates memory and frees it as the test says.
pub const WORKLOAD: Workload = Workload {
    name: "memory-returns",
    run: serve,
};

/// How much the guest allocates, and how much of it the host must see used, in MiB.
const ALLOCATED_MIB: usize = 256;
const USED_MIB: u64 = 240;
/// How much more than before the allocation the VMM may use after the memory was freed, in MiB.
const REMAINDER_MIB: u64 = 32;
/// How long the freed memory may take to return.
const RETURN_DEADLINE: Duration = Duration::from_secs(5);
/// How often the VMM's memory is read until then.
const INTERVAL: Duration = Duration::from_millis(200);
/// The test sends this byte for each step, and the guest returns it when the step is done.
const STEP: [u8; 1] = [b's'];

fn memory_returns(build: &Build) -> Result<()> {
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments: &["--commands"],
        ..Options::default()
    })?;
    let mut stream = guest.connect()?;
    guest.attach_common()?;
    let resident_mib = || Ok::<u64, anyhow::Error>(memory::resident_kib(guest.vmm_pid())? / 1024);
    step(&mut stream)?;
    let before = resident_mib()?;
    step(&mut stream)?;
    let used = resident_mib()?;
    ensure!(
        used >= before + USED_MIB,
        "the guest allocated {ALLOCATED_MIB} MiB, and the VMM's memory grew from {before} to {used} MiB only"
    );
    step(&mut stream)?;
    let freed = Instant::now();
    let mut left = resident_mib()?;
    while left > before + REMAINDER_MIB {
        ensure!(
            freed.elapsed() < RETURN_DEADLINE,
            "MiB of the VMM: {before}, {used} with the guest's {ALLOCATED_MIB}, and still {left} \
             {RETURN_DEADLINE:?} after they were freed"
        );
        expect_silence(&mut stream, INTERVAL)?;
        left = resident_mib()?;
    }
    println!(
        "        MiB of the VMM: {before}, {used} with the guest's {ALLOCATED_MIB}, {left} after {:.1} s",
        freed.elapsed().as_secs_f64()
    );
    drop(stream);
    guest.finish(super::vm::DEADLINE)?;
    Ok(())
}

/// Makes the guest do its next step and waits until it is done.
fn step(stream: &mut UnixStream) -> Result<()> {
    let mut answer = [0];
    stream.write_all(&STEP)?;
    stream.read_exact(&mut answer)?;
    ensure!(answer == STEP, "the guest answered {answer:?}");
    Ok(())
}

/// Waits for `interval`; fails if the guest ends meanwhile.
fn expect_silence(stream: &mut UnixStream, interval: Duration) -> Result<()> {
    stream.set_read_timeout(Some(interval))?;
    match stream.read(&mut [0]) {
        Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => Ok(()),
        result => bail!("expected a guest that waits, got {result:?}"),
    }
}

fn serve(_: &Parameters) -> Result<Value> {
    let mut conversation = Conversation::accept()?;
    let stream = &mut conversation.stream;
    await_step(stream)?;
    workload::scan_pci_bus()?;
    finish_step(stream)?;
    await_step(stream)?;
    // Each page is written.
    let allocated = vec![1_u8; ALLOCATED_MIB << 20];
    std::hint::black_box(&allocated);
    finish_step(stream)?;
    await_step(stream)?;
    drop(allocated);
    finish_step(stream)?;
    let rest = stream.read(&mut [0])?;
    ensure!(rest == 0, "expected the end of the test");
    Ok(json!({}))
}

fn await_step(stream: &mut File) -> Result<()> {
    let mut order = [0];
    stream.read_exact(&mut order)?;
    ensure!(order == STEP, "the test sent {order:?}");
    Ok(())
}

fn finish_step(stream: &mut File) -> Result<()> {
    Ok(stream.write_all(&STEP)?)
}
