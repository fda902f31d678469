//! `start`: forks the daemon, which makes the pod's directory and socket, and prints its address. Every container's
//! start waits for it, so it does no more than that: it starts no runtime or thread and reads no
//! configuration. Whichever of the two is killed, the other removes what was made.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use nacre_pod::{Identity, Role, clean_up, log, state, sys};
use nacre_protocol::fault::{self, FaultPoint};

use crate::arguments::Arguments;
use crate::bootstrap::{Bootstrap, input};
use crate::daemon::{self, PRINTED};

/// Runs the command; `begun_ns` is when containerd executed it.
pub fn run(arguments: Arguments, begun_ns: u64) -> anyhow::Result<()> {
    let bundle = std::env::current_dir().context("working directory")?;
    let input = input::read(std::io::stdin()).context("standard input")?;
    let bootstrap = Bootstrap::parse(&input, &arguments);
    let spec = nacre_pod::read_spec(&bundle).unwrap_or_default();
    match nacre_pod::role_in(&spec).context("config.json")? {
        Role::Member(sandbox) if sandbox != arguments.id => return join(&arguments, &sandbox, &bootstrap),
        Role::Member(_) | Role::Sandbox | Role::Standalone => {}
    }
    let identity = Identity::new(&arguments.address, &arguments.namespace, &arguments.id, bundle);
    remove_earlier_pod(&identity)?;
    let debug = arguments.debug || bootstrap.asks_for_debug();
    let mut daemon = fork_daemon(identity.clone(), &bootstrap, debug, begun_ns)?;
    fault::reach(FaultPoint::StartForked);
    let mut answer = String::new();
    daemon
        .read_to_string(&mut answer)
        .context("reading the daemon's answer")?;
    match answer.split_at_checked(1) {
        Some((BOUND, address)) => {
            print(&bootstrap, address)?;
            // It has exited if this fails, and containerd notices that.
            let _ = daemon.write_all(PRINTED);
            Ok(())
        }
        Some((_, reason)) => bail!("{reason}"),
        None => {
            clean_up(&identity).context("cleaning up after the daemon")?;
            bail!("the shim's daemon was killed while it started");
        }
    }
}

/// What the daemon's answer begins with: the address follows.
const BOUND: &str = "+";
/// What its answer begins with if it failed: the reason follows.
const FAILED: &str = "-";

/// Forks the daemon, which makes the pod's directory and socket and answers on the returned stream. If this process is
/// killed before it has printed the address, nobody would know the daemon: it then ends itself, because the stream
/// ends without [`PRINTED`].
fn fork_daemon(
    identity: Identity,
    bootstrap: &Bootstrap,
    debug: bool,
    begun_ns: u64,
) -> anyhow::Result<UnixStream> {
    let (ours, mut theirs) = UnixStream::pair().context("socketpair")?;
    let our_end = ours.as_raw_fd();
    let containerd = Some(nix::unistd::getppid());
    let extensions: Vec<String> = bootstrap.extensions().map(str::to_owned).collect();
    let socket_directory = bootstrap.socket_directory();
    sys::fork_into(move || {
        // Otherwise the stream would not end with the parent. It can't fail: the descriptor is open.
        let _ = nix::unistd::close(our_end);
        let made = serve(&identity, socket_directory.as_deref());
        let answer = match &made {
            Ok((_, address)) => format!("{BOUND}{address}"),
            Err(error) => format!("{FAILED}{error:#}"),
        };
        let answered = theirs.write_all(answer.as_bytes());
        // If the parent was killed, the daemon finds the end of the stream.
        let _ = answered.and_then(|()| theirs.shutdown(std::net::Shutdown::Write));
        let Ok((listener, _)) = made else { return 1 };
        daemon::run(daemon::Start {
            identity,
            listener,
            starter: theirs,
            containerd,
            extensions,
            debug,
            begun_ns,
        })
    })
    .context("forking the daemon")?;
    Ok(ours)
}

/// Makes the pod's directory and its socket; returns the socket and its address.
fn serve(identity: &Identity, socket_directory: Option<&Path>) -> anyhow::Result<(UnixListener, String)> {
    let directory = identity.directory();
    state::make_directory(&directory)?;
    fault::reach(FaultPoint::StartDirectory);
    let bound = || {
        let listener = match socket_directory {
            Some(directory) => bind_in(directory, identity)?,
            None => bind(&identity.socket())?,
        };
        let address = socket_address(identity);
        write_address(&address)?;
        fault::reach(FaultPoint::StartBound);
        Ok((listener, address))
    };
    bound().inspect_err(|_| {
        // Ignore this error: the original one is returned.
        let _ = state::remove_directory(&directory);
    })
}

fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))
}

/// Binds the socket in `directory`, as containerd asks; a symbolic link in the pod's directory names it, for
/// the containers that join the pod, and for what removes it.
fn bind_in(directory: &Path, identity: &Identity) -> anyhow::Result<UnixListener> {
    let named = || directory.display().to_string();
    let mut maker = std::fs::DirBuilder::new();
    maker
        .recursive(true)
        .mode(0o711)
        .create(directory)
        .with_context(named)?;
    let socket = directory.join(format!("nacre-{}", identity.key));
    // An earlier pod of this name is gone, perhaps without its files in /run/nacre.
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", socket.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = bind(&socket)?;
    let link = identity.socket();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| symlink(&socket, &link))
        .inspect_err(|_| {
            // Ignore this error: the original one is returned.
            let _ = std::fs::remove_file(&socket);
        })
        .with_context(|| format!("linking {} to {}", link.display(), socket.display()))?;
    Ok(listener)
}

/// Prints the address of the sandbox's shim, for a container that joins a running pod.
fn join(arguments: &Arguments, sandbox: &str, bootstrap: &Bootstrap) -> anyhow::Result<()> {
    let identity = Identity::new(
        &arguments.address,
        &arguments.namespace,
        sandbox,
        Default::default(),
    );
    if !identity.socket().exists() {
        bail!(
            "container {} belongs to sandbox {sandbox}, which has no shim at {}",
            arguments.id,
            identity.socket().display()
        );
    }
    let address = socket_address(&identity);
    write_address(&address)?;
    print(bootstrap, &address)
}

/// The pod's socket as a URI.
fn socket_address(identity: &Identity) -> String {
    let socket = identity.socket();
    // Fails unless it is a symbolic link.
    let socket: PathBuf = std::fs::read_link(&socket).unwrap_or(socket);
    format!("unix://{}", socket.display())
}

/// Writes the address into the bundle, where containerd finds it after a restart. From 1.7 containerd writes
/// it itself.
fn write_address(address: &str) -> anyhow::Result<()> {
    std::fs::write(".address", address)
        .and_then(|()| std::fs::rename(".address", "address"))
        .context("writing the address into the bundle")
}

/// Removes what an earlier pod of the same name has left.
///
/// Fails if that pod's shim still answers.
fn remove_earlier_pod(identity: &Identity) -> anyhow::Result<()> {
    if !identity.directory().exists() {
        return Ok(());
    }
    if UnixStream::connect(identity.socket()).is_ok() {
        bail!(
            "a shim for {} in namespace {} already exists",
            identity.id,
            identity.namespace
        );
    }
    // Its hooks may fail, and containerd would take a line on standard error for the address. An unreadable pod.json is
    // not reported at all.
    log::set_id(&identity.id);
    log::send_to(daemon::open_log(&identity.bundle)?.into());
    clean_up(identity).context("cleaning up after an earlier pod of this name")?;
    Ok(())
}

fn print(bootstrap: &Bootstrap, address: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    output.write_all(&bootstrap.response(address))?;
    // Fails if containerd was killed.
    Ok(output.flush()?)
}
