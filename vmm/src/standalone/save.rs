//! Saves the guest to a snapshot (`--save`). Called by the standalone mode on the main thread, which then
//! exits.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nacre_protocol::guest::{MAX_REHEARSAL_REPORT, REHEARSE, REHEARSED, TEMPLATE_READY};
use nacre_protocol::text::printable;
use nacre_vmm::machine::Machine;
use nacre_vmm::main_loop::{self, Inputs, StopReason};
use nacre_vmm::memory::page_range::PageRange;
use nacre_vmm::snapshot::state::MachineState;
use nacre_vmm::snapshot::{Target, huge_pages};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::images;
use super::streams::Agent;
use crate::StandaloneArguments;

/// Linux reports the pages that were freed 2 s ago, and those that are free when its driver begins. So a guest that has
/// sent reports, and none for this long, has told of all its free pages.
const QUIET: Duration = Duration::from_millis(2_500);
/// How often to wait for that, at most.
const MOST_WAITS: u32 = 8;
/// How long a guest that was saved may take until its agent connects again.
const CONNECTS: Duration = Duration::from_secs(60);
/// How long its agent may take to rehearse a pod's start after that.
const REHEARSES: Duration = Duration::from_secs(30);
/// Most bytes of the agent's report in an error.
const MAX_REASON: usize = 512;

/// Creates the files of the snapshot, if there is to be one, of a guest with the kernel parameters
/// `extra_cmdline`.
pub fn target(arguments: &StandaloneArguments, extra_cmdline: &str) -> anyhow::Result<Option<Target>> {
    let Some(directory) = &arguments.save else {
        return Ok(None);
    };
    let created = Target::create(directory, images(arguments)?, extra_cmdline);
    created.context("creating the snapshot").map(Some)
}

/// Saves the guest to `target`: a restored one as it is, another one once its agent is ready. Returns the
/// reason to stop.
pub fn save(
    machine: &mut Machine,
    target: &Target,
    agent: &Agent,
    is_restored: bool,
) -> anyhow::Result<StopReason> {
    let mut stream = None;
    if !is_restored {
        match run_until_ready(machine, agent)? {
            Ready::Stream(ready) => {
                pause_reported(machine, ready.as_fd())?;
                stream = Some(ready);
            }
            Ready::Stopped(reason) => return Ok(reason),
        }
    }
    let started = Instant::now();
    let (mut state, mut memory) = machine.capture(target).context("saving the guest")?;
    if let Some(stream) = stream {
        state.early_writes = early_writes(machine, target, agent, stream)?;
        let MachineState {
            early_writes, data, ..
        } = &mut state;
        let stored = huge_pages::store(target.memory(), &memory, early_writes, data);
        memory = stored
            .map_err(target.memory_failed())
            .context("saving the guest")?;
    }
    target.finish(&state, memory).context("saving the guest")?;
    eprintln!(
        "nacre-vmm: saved the guest in {} ms",
        started.elapsed().as_millis()
    );
    Ok(StopReason::Requested)
}

/// Pauses the guest once it has reported its free pages, so that what continues from it does not do that again: each
/// report marks a block, whose page of the kernel's memory map would become a page of each of them.
fn pause_reported(machine: &mut Machine, stream: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut before = None;
    for _ in 0..MOST_WAITS {
        run_until(machine, stream, QUIET)?;
        machine.pause().context("pausing the guest")?;
        let reports = machine.free_page_reports().context("saving the guest")?;
        if reports.is_some_and(|count| count > 0) && reports == before {
            return Ok(());
        }
        before = reports;
        machine.resume().context("continuing the guest")?;
    }
    eprintln!("nacre-vmm: the guest reports its free pages all the time, or never: {before:?} reports");
    machine.pause().context("pausing the guest")
}

/// Lets the guest, which was saved, go on as a restored one does: its agent's `stream` ends. There it rehearses a
/// pod's start. Returns the pages that it writes until that is done. A guest that does not get there must not be a
/// template.
fn early_writes(
    machine: &mut Machine,
    target: &Target,
    agent: &Agent,
    stream: OwnedFd,
) -> anyhow::Result<Vec<PageRange>> {
    machine.log_writes().context("saving the guest")?;
    // After the guest was saved: no restored guest receives it.
    nix::unistd::write(&stream, &[REHEARSE]).context("writing to the agent's stream")?;
    drop(stream);
    machine
        .renew_generation_id()
        .context("renewing the generation id")?;
    machine.resume().context("continuing the guest")?;
    run_until(machine, agent.connected(), CONNECTS)?;
    let stream = agent.take_stream().with_context(|| {
        format!(
            "the agent of the guest that was saved has not connected within {} s",
            CONNECTS.as_secs()
        )
    })?;
    run_until(machine, stream.as_fd(), REHEARSES)?;
    read_report(&stream).context("rehearsing a pod's start in the guest that was saved")?;
    machine.pause().context("pausing the guest")?;
    drop(stream);
    let written = machine.early_writes(target).context("saving the guest")?;
    let pages: u32 = written.iter().map(|range| range.count).sum();
    eprintln!(
        "nacre-vmm: a guest that continues writes {pages} pages at once, in {} ranges",
        written.len()
    );
    Ok(written)
}

/// Runs the guest until `event` is readable, or for `duration`.
fn run_until(machine: &mut Machine, event: BorrowedFd<'_>, duration: Duration) -> anyhow::Result<()> {
    let inputs = Inputs {
        stop_request: Some(event),
        deadline: Some(Instant::now() + duration),
        ..Inputs::default()
    };
    let reason = main_loop::run(machine, inputs).context("waiting for the guest")?;
    // The agent powers the guest off when it ends.
    ensure!(reason == StopReason::Requested, "the guest has ended: {reason:?}");
    Ok(())
}

/// Reads the agent's report of a rehearsal from `stream`, where it is if it has come in time.
fn read_report(stream: &OwnedFd) -> anyhow::Result<()> {
    let mut event = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let is_there = poll(&mut event, PollTimeout::ZERO).context("waiting for the agent's report")? > 0;
    ensure!(
        is_there,
        "the agent has not reported within {} s",
        REHEARSES.as_secs()
    );
    // The agent sends it at once.
    let mut report = [0; MAX_REHEARSAL_REPORT];
    let length = nix::unistd::read(stream, &mut report).context("reading the agent's report")?;
    match report.get(..length).unwrap_or_default() {
        [] => bail!("the agent has ended its stream"),
        report if report == REHEARSED => Ok(()),
        text => bail!("{}", printable(&String::from_utf8_lossy(text), MAX_REASON)),
    }
}

/// What a guest that is to be saved comes to.
enum Ready {
    /// Its agent waits for the end of this stream.
    Stream(OwnedFd),
    /// It has ended.
    Stopped(StopReason),
}

/// Runs the guest until its agent reports that it can be saved.
fn run_until_ready(machine: &mut Machine, agent: &Agent) -> anyhow::Result<Ready> {
    let connected = Inputs {
        stop_request: Some(agent.connected()),
        ..Inputs::default()
    };
    let reason = main_loop::run(machine, connected).context("waiting for the guest")?;
    if reason != StopReason::Requested {
        return Ok(Ready::Stopped(reason));
    }
    let stream = agent.take_stream().context("the agent has no stream")?;
    let readable = Inputs {
        stop_request: Some(stream.as_fd()),
        ..Inputs::default()
    };
    let reason = main_loop::run(machine, readable).context("waiting for the agent")?;
    if reason != StopReason::Requested {
        return Ok(Ready::Stopped(reason));
    }
    let mut byte = [0];
    let read = nix::unistd::read(&stream, &mut byte).context("reading the agent's stream")?;
    ensure!(
        (read, byte) == (1, [TEMPLATE_READY]),
        "the agent does not report that it can be saved"
    );
    Ok(Ready::Stream(stream))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What is read of an agent that has written `report` and, if `ends`, closed its stream.
    fn read_of(report: &[u8], ends: bool) -> Result<(), String> {
        let (mut agent, stream) = UnixStream::pair().unwrap();
        agent.write_all(report).unwrap();
        let agent = (!ends).then_some(agent);
        let read = read_report(&stream.into()).map_err(|error| format!("{error:#}"));
        drop(agent);
        read
    }

    #[test]
    fn only_one_report_is_that_of_a_rehearsal_that_has_succeeded() {
        assert_eq!(read_of(REHEARSED, false), Ok(()));
        assert_eq!(read_of(REHEARSED, true), Ok(()));
        for (report, ends, reason) in [
            (&b""[..], false, "the agent has not reported within 30 s"),
            (b"", true, "the agent has ended its stream"),
            (b"Setup: \x1b[1mrefused", false, r"Setup: \u{1b}[1mrefused"),
        ] {
            assert_eq!(read_of(report, ends).unwrap_err(), reason);
        }
        let long = read_of(&[b'x'; 4096], false).unwrap_err();
        assert!(long.len() <= MAX_REASON, "{} bytes", long.len());
    }
}
