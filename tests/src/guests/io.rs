//! A guest that does what its test asks for over vsock: it returns a byte, or it looks up names that are
//! missing in the shared directory, each of which is one FUSE request. The test counts and times both; the
//! benchmark does, too.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::exits::Exits;
use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{self, Parameters};
use super::{Build, Guest, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[test(
    "1,000 round trips over vsock, and 1,000 requests of virtio-fs",
    round_trips_and_requests,
)];

/// Serves orders until the test closes the connection.
pub const WORKLOAD: Workload = Workload {
    name: "io",
    run: serve,
};

/// Order of the test: the guest returns this byte.
const ECHO: u8 = b'e';
/// Order of the test, followed by a count of 4 bytes: the guest looks up as many missing names and returns
/// how long it took, as nanoseconds in 8 bytes. All numbers are little-endian.
const LOOK_UP: u8 = b'l';
/// How many operations a test makes.
const OPERATIONS: u32 = 1000;

/// What operations took on average.
#[derive(Debug, Clone)]
pub struct Cost {
    /// The mean duration of one.
    pub duration: Duration,
    /// VM exits of one; None if the host does not count them for us.
    pub exits: Option<Exits>,
}

/// A running guest with this workload.
#[derive(Debug)]
pub struct IoGuest {
    guest: Guest,
    stream: UnixStream,
}

impl IoGuest {
    /// Boots a guest of `build` and makes one round trip and one request.
    ///
    /// # Errors
    /// If the guest does not start.
    pub fn boot(build: &Build) -> Result<Self> {
        let mut guest = build.boot(&Options {
            workload: WORKLOAD.name,
            ..Options::default()
        })?;
        let stream = guest.connect()?;
        let mut running = Self { guest, stream };
        running.round_trips(1)?;
        running.requests(1)?;
        Ok(running)
    }

    /// Sends a byte to the guest and reads it back, `count` times. The host's clock measures.
    ///
    /// # Errors
    /// If the guest ends or returns another byte.
    pub fn round_trips(&mut self, count: u32) -> Result<Cost> {
        let before = self.exits()?;
        let started = Instant::now();
        for number in 0..count {
            let mut byte = [0];
            self.stream.write_all(&[ECHO])?;
            self.stream
                .read_exact(&mut byte)
                .with_context(|| format!("round trip {number}"))?;
            ensure!(byte == [ECHO], "round trip {number} returned {byte:?}");
        }
        self.cost(started.elapsed(), before, count)
    }

    /// Has the guest look up `count` missing names. The guest's clock measures.
    ///
    /// # Errors
    /// If the guest ends.
    pub fn requests(&mut self, count: u32) -> Result<Cost> {
        let before = self.exits()?;
        let mut order = vec![LOOK_UP];
        order.extend(count.to_le_bytes());
        self.stream.write_all(&order)?;
        let mut nanoseconds = [0; 8];
        self.stream
            .read_exact(&mut nanoseconds)
            .context("waiting for the requests")?;
        self.cost(
            Duration::from_nanos(u64::from_le_bytes(nanoseconds)),
            before,
            count,
        )
    }

    /// Ends the guest; returns how many round trips and requests it counted.
    ///
    /// # Errors
    /// If it does not power itself off.
    pub fn finish(self) -> Result<(u64, u64)> {
        let Self { guest, stream } = self;
        drop(stream);
        let report = guest.finish(DEADLINE)?;
        let count = |key: &str| {
            report[key]
                .as_u64()
                .with_context(|| format!("no {key} in {report}"))
        };
        Ok((count("echoes")?, count("requests")?))
    }

    fn exits(&self) -> Result<Option<Exits>> {
        Exits::of(self.guest.vmm_pid())
    }

    fn cost(&self, took: Duration, before: Option<Exits>, count: u32) -> Result<Cost> {
        let exits = match (before, self.exits()?) {
            (Some(before), Some(after)) => Some(after.since(&before, count)),
            _ => None,
        };
        Ok(Cost {
            duration: took / count,
            exits,
        })
    }
}

fn round_trips_and_requests(build: &Build) -> Result<()> {
    let mut guest = IoGuest::boot(build)?;
    for (what, cost) in [
        ("vsock round trip", guest.round_trips(OPERATIONS)?),
        ("virtio-fs request", guest.requests(OPERATIONS)?),
    ] {
        let exits = cost.exits.map(|exits| exits.to_string()).unwrap_or_default();
        println!("        {what}: {} µs, {exits}", cost.duration.as_micros());
    }
    let counted = guest.finish()?;
    let expected = u64::from(OPERATIONS) + 1;
    ensure!(counted == (expected, expected), "the guest counted {counted:?}");
    Ok(())
}

fn serve(_: &Parameters) -> Result<Value> {
    let mut stream = Conversation::accept()?;
    let (mut echoes, mut requests) = (0_u64, 0_u64);
    let mut order = [0];
    while stream.stream.read(&mut order)? == 1 {
        match order {
            [ECHO] => {
                stream.stream.write_all(&order)?;
                echoes += 1;
            }
            [LOOK_UP] => {
                let took = look_up(&mut stream.stream, &mut requests)?;
                stream
                    .stream
                    .write_all(&u64::try_from(took.as_nanos())?.to_le_bytes())?;
            }
            _ => bail!("there is no order {order:?}"),
        }
    }
    Ok(json!({ "echoes": echoes, "requests": requests }))
}

/// Looks up as many missing names as the order says, each one for the first time, so that no cache answers.
fn look_up(stream: &mut File, requests: &mut u64) -> Result<Duration> {
    let mut count = [0; 4];
    stream.read_exact(&mut count)?;
    let started = Instant::now();
    for _ in 0..u32::from_le_bytes(count) {
        let name = Path::new(workload::SHARED).join(format!("missing-{requests}"));
        let found = rustix::fs::stat(&name);
        ensure!(
            found.is_err_and(|error| error == Errno::NOENT),
            "{} exists",
            name.display()
        );
        *requests += 1;
    }
    Ok(started.elapsed())
}
