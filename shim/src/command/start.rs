//! `start`: makes the pod's directory and socket, forks the daemon and prints its address. Every container's
//! start waits for it, so it does no more than that: it starts no runtime or thread and reads no
//! configuration.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use nacre_pod::{Identity, Role, clean_up, state, sys};

use crate::arguments::Arguments;
use crate::bootstrap::{Bootstrap, input};
use crate::daemon;

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
    let directory = identity.directory();
    state::make_directory(&directory)?;
    let debug = arguments.debug || bootstrap.asks_for_debug();
    let address = serve(identity, &bootstrap, debug, begun_ns).inspect_err(|_| {
        // Only the daemon would remove it. Ignore this error: the original one is returned.
        let _ = state::remove_directory(&directory);
    })?;
    print(&bootstrap, &address)
}

/// Binds the pod's socket and forks the daemon that serves it; returns the address.
fn serve(identity: Identity, bootstrap: &Bootstrap, debug: bool, begun_ns: u64) -> anyhow::Result<String> {
    let listener = match bootstrap.socket_directory() {
        Some(directory) => bind_in(&directory, &identity)?,
        None => bind(&identity.socket())?,
    };
    let address = socket_address(&identity);
    let start = daemon::Start {
        identity,
        listener,
        containerd: Some(nix::unistd::getppid()),
        extensions: bootstrap.extensions().map(str::to_owned).collect(),
        debug,
        begun_ns,
    };
    write_address(&address)?;
    sys::fork_into(move || daemon::run(start)).context("forking the daemon")?;
    Ok(address)
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
    // An unreadable pod.json is not reported: containerd reads standard error, too, and would take it for the
    // address.
    clean_up(identity).context("cleaning up after an earlier pod of this name")?;
    Ok(())
}

fn print(bootstrap: &Bootstrap, address: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(&bootstrap.response(address))?;
    Ok(())
}
