//! The daemon of a pod. `start` forks it; it leaves containerd's session and standard streams, serves the
//! Task and Sandbox services on the socket that `start` has bound, and exits with its sandbox.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncReadExt as _;
use ttrpc::asynchronous::Server;

use nacre_pod::{Call, Handle, Identity, Sandbox, log, sys};

use crate::connections::Connections;
use crate::events::Publisher;
use crate::{sandbox, service, streaming, ttrpc_log};

/// How long the last answers and events may take to be delivered before the daemon exits.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// How long clients that got the last answers may take to close their connections before the daemon closes them.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// What `start` writes when it has printed the address.
pub const PRINTED: &[u8] = b"+";

/// What `start` passes to the daemon.
#[derive(Debug)]
pub struct Start {
    /// The pod.
    pub identity: Identity,
    /// The pod's socket, listening.
    pub listener: UnixListener,
    /// Ends with [`PRINTED`] when `start` has printed the address.
    pub starter: UnixStream,
    /// containerd's pid.
    pub containerd: Option<nix::unistd::Pid>,
    /// The types of the runtime's options, which this program does not have.
    pub extensions: Vec<String>,
    /// Log lines of the level "debug", too.
    pub debug: bool,
    /// When containerd executed the shim, monotonic nanoseconds.
    pub begun_ns: u64,
}

/// Runs the daemon until its sandbox has ended; returns the exit code.
pub fn run(start: Start) -> i32 {
    log::set_id(&start.identity.id);
    if start.debug {
        log::enable_debug();
    }
    ttrpc_log::install();
    match detach(&start).and_then(|()| serve(start)) {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("the shim exits: {error:#}"));
            1
        }
    }
}

/// Leaves the session, standard streams and OOM score that the process has from containerd's call of `start`.
fn detach(start: &Start) -> anyhow::Result<()> {
    nix::unistd::setsid().context("starting a session")?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("/dev/null")?;
    nix::unistd::dup2_stdin(&null).context("standard input")?;
    nix::unistd::dup2_stdout(&null).context("standard output")?;
    nix::unistd::dup2_stderr(&open_log(&start.identity.bundle)?).context("standard error")?;
    adjust_oom_score(start.containerd);
    Ok(())
}

/// Opens the log that containerd reads, the FIFO in the bundle; /dev/null if there is none, as when the shim is run by
/// hand.
///
/// # Errors
/// If /dev/null can't be opened.
pub fn open_log(bundle: &Path) -> anyhow::Result<File> {
    // Opened for reading, too: without containerd as a reader, writing then neither blocks nor raises
    // SIGPIPE.
    let open = |path: &Path| {
        File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
    };
    let log = open(&bundle.join("log")).or_else(|_| open(Path::new("/dev/null")));
    log.context("/dev/null")
}

/// Makes the shim a little more likely to be OOM-killed than containerd, as containerd's own shims do.
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
        log::warn(format_args!("setting the shim's oom_score_adj: {error:#}"));
    }
}

/// Reports the exit of the containerd that executed `start`: if it has not called Create, its successor won't.
async fn report_exit(containerd: Option<nix::unistd::Pid>, sandbox: Handle) {
    let pid = containerd.and_then(|pid| rustix::process::Pid::from_raw(pid.as_raw()));
    let Some(pid) = pid else { return };
    let exited = async {
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(process) => sys::watch(process)?.readable().await.map(drop),
            // It has exited already.
            Err(_) => Ok(()),
        }
    };
    match exited.await {
        Ok(()) => sandbox.caller_exited().await,
        Err(error) => log::warn(format_args!("waiting for containerd's exit: {error}")),
    }
}

/// Ends the sandbox if `start` was killed before it had printed the address: containerd knows nothing of this shim.
async fn end_if_unknown(starter: UnixStream, sandbox: Handle) {
    let printed = async {
        starter.set_nonblocking(true)?;
        let mut end = Vec::new();
        let mut starter = tokio::net::UnixStream::from_std(starter)?;
        starter.read_to_end(&mut end).await?;
        std::io::Result::Ok(end == PRINTED)
    };
    // An error, too: the stream is reset if `start` was killed before it had read the answer.
    if printed.await.unwrap_or(false) {
        return;
    }
    log::error("the shim's command start was killed before it had printed the address: the shim exits");
    // Fails if the sandbox is exiting anyway.
    let _ = sandbox.call(|reply| Call::Shutdown { now: true, reply }).await;
}

fn serve(start: Start) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("starting the tokio runtime")?;
    for name in &start.extensions {
        log::info(format_args!("bootstrap extension {name:?} is ignored"));
    }
    runtime.block_on(async {
        let address = std::env::var("TTRPC_ADDRESS")
            .ok()
            .filter(|address| !address.is_empty());
        let (publisher, delivered) = Publisher::spawn(&start.identity.namespace, address);
        let wake = publisher.wake();
        let (id, namespace) = (start.identity.id.clone(), start.identity.namespace.clone());
        let (sandbox, handle) = Sandbox::new(start.identity, Box::new(publisher), start.begun_ns);
        let (connections, listener) =
            Connections::listen(start.listener).context("registering the pod's socket")?;
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(service::services(&handle, &wake))
            .register_service(sandbox::services(id, namespace, &handle, &wake))
            .register_service(streaming::services());
        server.start().await.context("starting the services")?;
        tokio::spawn(report_exit(start.containerd, handle.clone()));
        tokio::spawn(end_if_unknown(start.starter, handle));
        sandbox.run().await;
        // A client that is still connected then, perhaps another one, gets the end of its connection.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, connections.closed()).await;
        // Waits until the answers are written, if clients did not wait for them.
        let last = async {
            if let Err(error) = server.shutdown().await {
                log::warn(format_args!("shutting down the services: {error}"));
            }
            delivered.await
        };
        match tokio::time::timeout(FLUSH_DEADLINE, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error(format_args!("the task that delivers events: {error}")),
            Err(_elapsed) => log::warn("the last answers or events were not delivered in time"),
        }
        Ok(())
    })
}
