//! Saves the guest to a snapshot (`--save`). Called by the standalone mode on the main thread, which then
//! exits.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use nacre_protocol::guest::TEMPLATE_READY;
use nacre_vmm::machine::Machine;
use nacre_vmm::main_loop::{self, Inputs, StopReason};
use nacre_vmm::snapshot::Target;

use super::images;
use super::streams::Agent;
use crate::StandaloneArguments;

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
    if !is_restored {
        if let Some(reason) = run_until_ready(machine, agent)? {
            return Ok(reason);
        }
        machine.pause().context("pausing the guest")?;
    }
    let started = Instant::now();
    machine.save(target).context("saving the guest")?;
    eprintln!(
        "nacre-vmm: saved the guest in {} ms",
        started.elapsed().as_millis()
    );
    Ok(StopReason::Requested)
}

/// Runs the guest until its agent reports that it can be saved. Returns the reason if it stops before.
fn run_until_ready(machine: &mut Machine, agent: &Agent) -> anyhow::Result<Option<StopReason>> {
    let connected = Inputs {
        stop_request: Some(agent.connected()),
        ..Inputs::default()
    };
    let reason = main_loop::run(machine, connected).context("waiting for the guest")?;
    if reason != StopReason::Requested {
        return Ok(Some(reason));
    }
    let stream = agent.stream().context("the agent has no stream")?;
    let readable = Inputs {
        stop_request: Some(stream),
        ..Inputs::default()
    };
    let reason = main_loop::run(machine, readable).context("waiting for the agent")?;
    if reason != StopReason::Requested {
        return Ok(Some(reason));
    }
    let mut byte = [0];
    let read = nix::unistd::read(stream, &mut byte).context("reading the agent's stream")?;
    ensure!(
        (read, byte) == (1, [TEMPLATE_READY]),
        "the agent does not report that it can be saved"
    );
    Ok(None)
}
