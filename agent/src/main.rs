//! nacre-agent: pid 1 of a guest. It mounts what it needs, opens one stream to the host and serves the agent's
//! protocol on it until the stream ends, then powers the guest off.
//!
//! One event loop, one thread: it forks. Run under the name of a helper, the program makes one container instead.
//! `nacre-agent --by-hand DIRECTORY` serves without being pid 1 of anything: it connects to Unix sockets in that
//! directory, named by the port, and leaves the machine as it is.

mod async_fd;
mod cgroup;
mod command;
mod connection;
mod container;
mod devices;
mod dial;
mod error;
mod exec;
mod guest_init;
mod reaper;
mod report;
mod runtime;
mod scheduler;
mod service;
mod signal;
mod stdio;
mod terminal;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nacre_protocol::vsock::AGENT_PORT;

use crate::container::Containers;
use crate::dial::Dialer;
use crate::reaper::Reaper;
use crate::service::{Service, Times};

/// How long the host may take to close its stream after the answer to Shutdown.
const LAST_WORDS: Duration = Duration::from_millis(100);

fn main() {
    let started_us = guest_init::monotonic_us();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name == runtime::HELPER {
        std::process::exit(runtime::child::main());
    }
    if let Some(file) = runtime::ids::file(&name) {
        let written = runtime::ids::write(file, &arguments.collect::<Vec<_>>());
        std::process::exit(i32::from(written.is_err()));
    }
    report::install_panic_hook();
    let dialer = match (arguments.next(), arguments.next()) {
        (Some(flag), Some(directory)) if flag == "--by-hand" => Dialer::Unix(PathBuf::from(directory)),
        _ if std::process::id() == 1 => Dialer::Vsock,
        _ => {
            eprintln!(
                "nacre-agent is the first process of a guest. To try it: nacre-agent --by-hand DIRECTORY"
            );
            std::process::exit(2);
        }
    };
    if let Err(error) = run(&dialer, started_us) {
        report::to_console(&format!("{error:#}"));
        std::process::exit(report::FAILED);
    }
}

fn run(dialer: &Dialer, started_us: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(dialer, started_us))?;
    if owns_machine(dialer) {
        return Err(guest_init::power_off()).context("powering off");
    }
    Ok(())
}

fn owns_machine(dialer: &Dialer) -> bool {
    matches!(dialer, Dialer::Vsock)
}

async fn serve(dialer: &Dialer, started_us: u64) -> Result<()> {
    // The host is told first: it has things to do too.
    let dialing = dialer.start(AGENT_PORT)?;
    if owns_machine(dialer) {
        guest_init::replace_rootfs()?;
        guest_init::mount_filesystems()?;
    } else {
        nix::sys::prctl::set_child_subreaper(true).context("becoming the parent of orphans")?;
    }
    let reaper = Arc::new(Reaper::default());
    Arc::clone(&reaper).start().context("waiting for children")?;
    let program = if owns_machine(dialer) {
        "/proc/self/exe".into()
    } else {
        std::env::current_exe()?
    };
    let containers = Containers::new(program, dialer.clone(), reaper);
    let stream = dialing.finish().await?;
    let times = Times {
        started_us,
        dialed_us: guest_init::monotonic_us(),
    };
    let (methods, mut shutdown) = Service::methods(Arc::clone(&containers), times, owns_machine(dialer));
    let mut serving = connection::serve(stream, methods).await?;
    if owns_machine(dialer) {
        guest_init::prepare_for_containers()?;
    }
    containers.prepare()?;
    tokio::select! {
        () = serving.ended() => {}
        _ = shutdown.wait_for(|wanted| *wanted) => {
            // The answer is on its way; a host that has it closes the stream.
            let _ = tokio::time::timeout(LAST_WORDS, serving.ended()).await;
        }
    }
    Ok(())
}
