//! Saves the guest to a snapshot (`--save`). Called by the standalone mode on the main thread, which then
//! exits.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nacre_protocol::guest::TEMPLATE_READY;
use nacre_vmm::machine::Machine;
use nacre_vmm::main_loop::{self, Inputs, StopReason};
use nacre_vmm::snapshot::state::{MachineState, PageRange};
use nacre_vmm::snapshot::{Target, huge_pages};

use super::images;
use super::streams::Agent;
use crate::StandaloneArguments;

/// How long a guest that was saved may take until its agent connects again.
const CONNECTS: Duration = Duration::from_secs(60);
/// How long the agent takes to mount the shared tree after that, and some more. No event says that it waits: it says
/// nothing before it is asked, in a protocol that the VMM does not know, and a vCPU that halts does not leave KVM. If
/// it takes longer, fewer pages are copied ahead.
const SETTLES: Duration = Duration::from_millis(500);

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
            Ready::Stream(ready) => stream = Some(ready),
            Ready::Stopped(reason) => return Ok(reason),
        }
        machine.pause().context("pausing the guest")?;
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

/// Lets the guest, which was saved, go on as a restored one does: its agent's `stream` ends. Returns the pages that
/// it writes until its agent waits for the host again. A guest that does not get there must not be a template.
fn early_writes(
    machine: &mut Machine,
    target: &Target,
    agent: &Agent,
    stream: OwnedFd,
) -> anyhow::Result<Vec<PageRange>> {
    drop(stream);
    machine
        .renew_generation_id()
        .context("renewing the generation id")?;
    machine.resume().context("continuing the guest")?;
    let until = |after| Some(Instant::now() + after);
    let connected = Inputs {
        stop_request: Some(agent.connected()),
        deadline: until(CONNECTS),
        ..Inputs::default()
    };
    let idle = |deadline| Inputs {
        deadline,
        ..Inputs::default()
    };
    let failed = "waiting for the guest that was saved";
    let reason = main_loop::run(machine, connected).context(failed)?;
    // The agent powers the guest off when it ends.
    ensure!(
        reason == StopReason::Requested,
        "the guest that was saved has ended: {reason:?}"
    );
    let stream = agent.take_stream();
    ensure!(
        stream.is_some(),
        "the agent of the guest that was saved has not connected within {} s",
        CONNECTS.as_secs()
    );
    let reason = main_loop::run(machine, idle(until(SETTLES))).context(failed)?;
    ensure!(
        reason == StopReason::Requested,
        "the guest that was saved has ended: {reason:?}"
    );
    machine.pause().context("pausing the guest")?;
    drop(stream);
    let written = machine.early_writes(target).context("saving the guest")?;
    let pages: u32 = written.iter().map(|range| range.count).sum();
    eprintln!("nacre-vmm: a guest that continues writes {pages} pages at once");
    Ok(written)
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
