//! A guest with RAM above 4 GiB: its kernel keeps none of it for devices.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::workload::Parameters;
use super::{Build, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[test(
    "a guest of 4 GiB has its memory, without bounce buffers",
    total,
)];

/// Reads how much memory the kernel has.
pub const WORKLOAD: Workload = Workload {
    name: "memory-total",
    run: read_total,
};

/// Linux needs one part in 64 for its descriptions of pages, and some 40 MiB; bounce buffers would be 64 MiB
/// more.
const BOOT_MIB: u64 = 4096;
const LEAST_MIB: u64 = BOOT_MIB - BOOT_MIB / 64 - 80;

fn total(build: &Build) -> Result<()> {
    let guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments: &["--memory-mib", &BOOT_MIB.to_string()],
        ..Options::default()
    })?;
    let report = guest.finish(super::vm::DEADLINE)?;
    let mib = report.as_u64().context("no number")? / 1024;
    println!("        {mib} of {BOOT_MIB} MiB");
    ensure!(mib >= LEAST_MIB, "{mib} of {BOOT_MIB} MiB, expected {LEAST_MIB}");
    Ok(())
}

/// MemTotal in KiB.
fn read_total(_: &Parameters) -> Result<Value> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let field = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = field.context("/proc/meminfo has no MemTotal")?.trim();
    let kib: u64 = kib.trim_end_matches(" kB").parse()?;
    Ok(json!(kib))
}
