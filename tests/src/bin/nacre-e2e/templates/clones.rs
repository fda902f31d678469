//! Many pods from one template: no two are alike in anything that must be a machine's own, and each has the host's
//! time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::container_program::Program;
use nacre_tests::containerd::ctr::{Foreground, Run, fresh_id};
use nacre_tests::identity::{Identity, clock_ns};
use nacre_tests::tls::Certificate;

use super::origin_of;
use crate::operator::nacre;

/// Pods that run at once.
const AT_ONCE: usize = 2;
/// After so many pods there is a line of output.
const REPORTED: usize = 20;
/// How often a pod's clock is read; the answer that took the shortest time counts.
const CLOCK_READINGS: usize = 5;
/// How far a guest's clock may be outside of the time in which it was read. Setup sets it to the time at which the shim
/// has sent it, so it is behind by as long as the message takes.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);

/// What was found in a pod.
struct Found {
    identity: Identity,
    clock: Clock,
}

/// A reading of a guest's clock.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// How long the answer took, ns.
    took: u64,
    /// How far it is outside of that time, ns.
    outside: u64,
}

/// Runs `count` pods, a few at a time.
pub fn differ(count: usize) -> Result<()> {
    // The lab makes only that of pods without limits and configuration.
    nacre(&["template", "build"])?;
    let program = Program::new("nacre-identity")?;
    let (mut clones, mut origins) = (Vec::new(), Vec::new());
    while clones.len() < count {
        let some = AT_ONCE.min(count.saturating_sub(clones.len()));
        let pods: Vec<Foreground> = (0..some).map(|_| start(&program)).collect::<Result<_>>()?;
        for pod in pods {
            origins.push(origin_of_running(pod, &mut clones)?);
            differs(&clones)?;
        }
        if clones.len() % REPORTED == 0 {
            println!("        {} pods differ", clones.len());
        }
    }
    let first = origins.first().context("no pod")?;
    ensure!(first.starts_with("template "), "{first}");
    ensure!(origins.iter().all(|origin| origin == first), "{origins:?}");
    let clocks = || clones.iter().map(|clone| clone.clock);
    let ms = |ns: Option<u64>| ns.unwrap_or_default() / 1_000_000;
    println!(
        "        {count} pods; a clock is at most {} ms outside of its reading, which took {} ms at most",
        ms(clocks().map(|clock| clock.outside).max()),
        ms(clocks().map(|clock| clock.took).max())
    );
    Ok(())
}

/// Compares the last one of `clones` with all others.
fn differs(clones: &[Found]) -> Result<()> {
    let (last, others) = clones.split_last().context("no pod")?;
    for (number, other) in others.iter().enumerate() {
        let shared = last.identity.shared_with(&other.identity);
        ensure!(
            shared.is_empty(),
            "pods {number} and {} have the same {shared:?}: {:?}",
            others.len(),
            last.identity
        );
    }
    Ok(())
}

fn start(program: &Program) -> Result<Foreground> {
    let (mount, words) = (program.mount(), program.command());
    let run = Run {
        flags: &["--mount", &mount],
        command: &words.each_ref().map(String::as_str),
        ..Run::default()
    };
    let mut pod = run.spawn(&fresh_id("clone"))?;
    pod.send_line(&serde_json::to_string(&Certificate::new()?)?)?;
    Ok(pod)
}

/// Adds what is found in `pod` to `clones`, ends it, and returns its origin.
fn origin_of_running(mut pod: Foreground, clones: &mut Vec<Found>) -> Result<String> {
    let line = pod.line()?;
    let identity = serde_json::from_str(&line).with_context(|| line.clone())?;
    let readings: Vec<Clock> = (0..CLOCK_READINGS)
        .map(|_| read_clock(&mut pod))
        .collect::<Result<_>>()?;
    let clock = readings.into_iter().min_by_key(|clock| clock.took);
    let clock = clock.context("no reading")?;
    ensure!(
        u128::from(clock.outside) <= CLOCK_TOLERANCE.as_nanos(),
        "the guest's clock: {clock:?}"
    );
    clones.push(Found { identity, clock });
    let origin = origin_of(&pod.id);
    pod.wait_with_output()?.success()?;
    origin
}

fn read_clock(pod: &mut Foreground) -> Result<Clock> {
    let before = clock_ns()?;
    pod.send_line("")?;
    let guest: u64 = pod.line()?.parse()?;
    let after = clock_ns()?;
    let outside = before.saturating_sub(guest).max(guest.saturating_sub(after));
    Ok(Clock {
        took: after.saturating_sub(before),
        outside,
    })
}
