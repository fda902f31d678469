//! nacre-agent: PID 1 of a guest. It mounts the guest's file systems, opens one stream to the host and serves
//! the agent's protocol on it until the stream ends, then powers the guest off.
//!
//! One event loop in one thread, because the agent forks. The same program also brings vCPUs online: [`Role`]
//! says which of them a process is.

mod async_fd;
mod cgroup;
mod child;
mod clock;
mod command;
mod connection;
mod container;
mod copy;
mod cpus;
mod devices;
mod dial;
mod disk;
mod entropy;
mod error;
mod exec;
mod fork;
mod forward;
mod guest_init;
mod kernel_reports;
mod keyring;
mod loopback;
mod memory;
mod network;
mod own_program;
mod pci;
mod pod;
mod reaper;
mod rehearsal;
mod report;
mod runtime;
mod scheduler;
mod service;
mod signal;
mod slow_call;
mod spec;
mod stdio;
mod template;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nacre_protocol::guest::TEMPLATE;
use nacre_protocol::vsock::AGENT_PORT;

use crate::clock::Clock;
use crate::container::Containers;
use crate::cpus::Cpus;
use crate::dial::{Dialer, Dialing};
use crate::memory::Memory;
use crate::reaper::Reaper;
use crate::service::{GuestState, Life, Service};
use crate::template::NextLife;

/// Exit status for a wrong command line, as usual for programs of the shell.
const USAGE: i32 = 2;

/// What this process is, by its name, its arguments and its pid.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Brings vCPUs online or offline: `argv[0]` is [`cpus::PROGRAM`].
    BringCpus { arguments: Vec<OsString> },
    /// PID 1 of a guest. `is_template` if the VM is going to be saved to a snapshot.
    GuestInit { is_template: bool },
    /// An agent outside a guest, for tests: `--standalone DIRECTORY`. It connects to Unix sockets in the
    /// directory, each named by its port number, and does not change the machine.
    Standalone { directory: PathBuf },
    /// The program of a rehearsal's container, which does nothing: `argv[0]` is [`rehearsal::PROGRAM`].
    Rehearsed,
    /// None of these.
    WrongUsage,
}

impl Role {
    fn parse(mut arguments: impl Iterator<Item = OsString>, pid: u32) -> Self {
        let name = arguments.next().unwrap_or_default();
        if name == cpus::PROGRAM {
            let arguments = arguments.collect();
            return Self::BringCpus { arguments };
        }
        if name == rehearsal::PROGRAM {
            return Self::Rehearsed;
        }
        let arguments: Vec<OsString> = arguments.collect();
        match arguments.as_slice() {
            [flag, directory, ..] if flag == "--standalone" => Self::Standalone {
                directory: directory.into(),
            },
            // The kernel passes on command line parameters that it does not know: PID 1 ignores the others.
            words if pid == 1 => Self::GuestInit {
                is_template: words.iter().any(|word| word == TEMPLATE),
            },
            _ => Self::WrongUsage,
        }
    }
}

fn main() {
    let started_us = guest_init::monotonic_us();
    let mut is_template = false;
    let dialer = match Role::parse(std::env::args_os(), std::process::id()) {
        Role::BringCpus { arguments } => {
            let brought = cpus::main(&arguments);
            if let Err(error) = &brought {
                eprintln!("bringing vCPUs online or offline: {error}");
            }
            std::process::exit(i32::from(brought.is_err()));
        }
        Role::GuestInit {
            is_template: template,
        } => {
            is_template = template;
            Dialer::Vsock
        }
        Role::Standalone { directory } => Dialer::Unix(directory),
        Role::Rehearsed => return,
        Role::WrongUsage => {
            eprintln!(
                "nacre-agent runs as PID 1 of a guest. To run it outside a guest: nacre-agent --standalone DIRECTORY"
            );
            std::process::exit(USAGE);
        }
    };
    report::install_panic_hook();
    if let Err(error) = run(&dialer, started_us, is_template) {
        report::to_console(&format!("{error:#}"));
        std::process::exit(report::FAILED);
    }
}

fn run(dialer: &Dialer, started_us: u64, is_template: bool) -> Result<()> {
    if is_template {
        own_program::move_to_huge_pages()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(dialer, started_us, is_template))?;
    if is_guest_init(dialer) {
        return Err(guest_init::power_off()).context("powering off");
    }
    Ok(())
}

/// Whether this agent is PID 1 of a guest, and so owns its mounts, clock and host name.
fn is_guest_init(dialer: &Dialer) -> bool {
    matches!(dialer, Dialer::Vsock)
}

async fn serve(dialer: &Dialer, started_us: u64, is_template: bool) -> Result<()> {
    // Connect first: the host does its part while the agent mounts file systems.
    let dialing = (!is_template).then(|| dialer.start(AGENT_PORT)).transpose()?;
    let is_guest_init = is_guest_init(dialer);
    let program = if is_guest_init {
        guest_init::replace_rootfs()?;
        guest_init::mount_filesystems()?;
        "/proc/self/exe".into()
    } else {
        // As PID 1 would, so that a container's init becomes the agent's child when its forerunner exits.
        nix::sys::prctl::set_child_subreaper(true).context("becoming a child subreaper")?;
        std::env::current_exe()?
    };
    let reaper = Arc::new(Reaper::default());
    Arc::clone(&reaper).start().context("waiting for children")?;
    let guest = if is_guest_init {
        Some(GuestState {
            clock: Clock::start(),
            memory: Memory::at_boot()?,
            cpus: Cpus {
                program: program.clone(),
                reaper: Arc::clone(&reaper),
            },
        })
    } else {
        None
    };
    let containers = Containers::new(dialer.clone(), reaper);
    let (dialing, next_life) = match dialing {
        Some(dialing) => (dialing, NextLife::Pod),
        None => live_again(dialer).await?,
    };
    if is_guest_init {
        guest_init::mount_shared_tree()?;
    }
    let stream = dialing.finish().await?;
    let life = if is_template {
        Life::Restored
    } else {
        Life::Booted {
            started_us,
            dialed_us: guest_init::monotonic_us(),
        }
    };
    let service = Service::new(containers, dialer.clone(), life, guest);
    let mut serving = connection::serve(stream, Arc::clone(&service).methods()).await?;
    if is_guest_init && !is_template {
        guest_init::prepare_for_containers()?;
    }
    if next_life == NextLife::Rehearsal {
        let rehearsed = rehearsal::run(&service).await;
        serving
            .write(&rehearsal::report(rehearsed))
            .context("reporting the rehearsal")?;
    }
    serving.ended().await;
    Ok(())
}

/// Prepares a template as far as possible without a stream and without the shared tree, and waits until the
/// VM continues from its snapshot. Returns the dialing of that life.
async fn live_again(dialer: &Dialer) -> Result<(Dialing, NextLife)> {
    guest_init::prepare_for_containers()?;
    let life = template::wait_for_next_life(dialer).await?;
    Ok((dialer.start(AGENT_PORT)?, life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_follows_from_name_arguments_and_pid() {
        let role = |arguments: &[&str], pid| Role::parse(arguments.iter().map(OsString::from), pid);
        let guest_init = |is_template| Role::GuestInit { is_template };
        assert_eq!(role(&["/init"], 1), guest_init(false));
        assert_eq!(role(&["/init", "quiet", "splash"], 1), guest_init(false));
        assert_eq!(role(&["/init", "quiet", TEMPLATE], 1), guest_init(true));
        assert_eq!(role(&["/init", TEMPLATE], 7), Role::WrongUsage);
        let bring = Role::BringCpus {
            arguments: vec!["2".into()],
        };
        assert_eq!(role(&[cpus::PROGRAM, "2"], 7), bring);
        assert_eq!(role(&[rehearsal::PROGRAM], 1), Role::Rehearsed);
        let standalone = Role::Standalone {
            directory: "/tmp/x".into(),
        };
        assert_eq!(role(&["nacre-agent", "--standalone", "/tmp/x"], 7), standalone);
        for arguments in [
            &["nacre-agent"][..],
            &["nacre-agent", "--standalone"],
            &["nacre-agent", "x", "y"],
            &[],
        ] {
            assert_eq!(role(arguments, 7), Role::WrongUsage, "{arguments:?}");
        }
    }
}
