//! The daemon of a pod: made by `start`'s fork, it leaves containerd's session and streams, serves the Task service on
//! the socket that `start` bound, and ends with its sandbox.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use nacre_pod::{Identity, Sandbox, log};

use crate::events::Publisher;
use crate::service;

/// Last events and answers may take this long to be on their way.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What `start` hands over.
#[derive(Debug)]
pub struct Start {
    /// The pod.
    pub identity: Identity,
    /// Its socket, listening.
    pub listener: UnixListener,
    /// containerd's pid.
    pub containerd: Option<nix::unistd::Pid>,
    /// When containerd executed the shim, monotonic nanoseconds.
    pub begun_ns: u64,
}

/// Runs the daemon to its end; gives the exit code.
pub fn run(start: Start) -> i32 {
    log::set_id(&start.identity.id);
    match detach(&start).and_then(|()| serve(start)) {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("the shim ends: {error:#}"));
            1
        }
    }
}

/// Leaves what belongs to containerd's call of `start`.
fn detach(start: &Start) -> anyhow::Result<()> {
    nix::unistd::setsid().context("making a session")?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("/dev/null")?;
    nix::unistd::dup2_stdin(&null).context("standard input")?;
    nix::unistd::dup2_stdout(&null).context("standard output")?;
    // Both ends, so that a containerd that restarts neither ends us nor is waited for.
    let fifo = start.identity.bundle.join("log");
    match File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo)
    {
        Ok(fifo) => nix::unistd::dup2_stderr(&fifo),
        // Nobody reads a log: that is how one tries a shim by hand.
        Err(_) => nix::unistd::dup2_stderr(&null),
    }
    .context("standard error")?;
    adjust_oom_score(start.containerd);
    Ok(())
}

/// As containerd's own shims do: a little easier to kill than containerd itself.
fn adjust_oom_score(containerd: Option<nix::unistd::Pid>) {
    let adjust = || -> anyhow::Result<()> {
        let Some(containerd) = containerd else {
            return Ok(());
        };
        let score: i32 = std::fs::read_to_string(format!("/proc/{containerd}/oom_score_adj"))?
            .trim()
            .parse()?;
        let file = Path::new("/proc/self/oom_score_adj");
        std::fs::write(file, (score + 1).min(1000).to_string()).with_context(|| file.display().to_string())
    };
    if let Err(error) = adjust() {
        log::warn(format_args!("adjusting the OOM score: {error:#}"));
    }
}

fn serve(start: Start) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("runtime")?;
    runtime.block_on(async {
        let address = std::env::var("TTRPC_ADDRESS")
            .ok()
            .filter(|address| !address.is_empty());
        let (publisher, delivered) = Publisher::spawn(&start.identity.namespace, address);
        let wake = publisher.wake();
        let (sandbox, handle) = Sandbox::new(start.identity, Box::new(publisher), start.begun_ns);
        let listener = Listener::try_from(start.listener).context("listening")?;
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(service::services(&handle, &wake));
        server.start().await.context("serving")?;
        sandbox.run().await;
        // Waits for the answer to Shutdown to be written, not for clients that stay.
        let last = async {
            if let Err(error) = server.shutdown().await {
                log::warn(format_args!("closing the service: {error}"));
            }
            delivered.await
        };
        match tokio::time::timeout(LAST_WORDS, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error(format_args!("the publisher: {error}")),
            Err(_elapsed) => log::warn("some events could not be delivered"),
        }
        Ok(())
    })
}
