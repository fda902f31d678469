//! A guest that can't rely on its CPU for random bytes: it has some when its init starts, by the host's seed.

use anyhow::{Context as _, Result, ensure};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Value, json};

use super::workload::Parameters;
use super::{Build, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[test(
    "random bytes are there at once by the host's seed",
    randomness,
)];

/// Draws random bytes without waiting for them.
pub const WORKLOAD: Workload = Workload {
    name: "randomness",
    run: draw,
};

fn randomness(build: &Build) -> Result<()> {
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let guest = build.boot(&Options {
            workload: WORKLOAD.name,
            cmdline: "random.trust_cpu=off",
            ..Options::default()
        })?;
        drawn.push(guest.finish(super::vm::DEADLINE)?);
    }
    ensure!(drawn[0] != drawn[1], "both guests drew {}", drawn[0]);
    Ok(())
}

fn draw(_: &Parameters) -> Result<Value> {
    let mut bytes = [0_u8; 16];
    let count = getrandom(&mut bytes, GetRandomFlags::NONBLOCK).context("drawing random bytes")?;
    ensure!(count == bytes.len(), "{count} bytes");
    Ok(json!(bytes))
}
