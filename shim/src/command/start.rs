//! `start`: makes the pod's directory and socket, forks the daemon and prints its address. Every container's
//! start waits for it, so it does no more than that: it starts no runtime or thread and reads no
//! configuration.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, bail};

use nacre_pod::{Identity, Role, clean_up, state, sys};

use crate::arguments::Arguments;
use crate::daemon;

/// Runs the command; `begun_ns` is when containerd executed it.
pub fn run(arguments: Arguments, begun_ns: u64) -> anyhow::Result<()> {
    let bundle = std::env::current_dir().context("working directory")?;
    let spec = std::fs::read(nacre_pod::config_json(&bundle)).unwrap_or_default();
    match nacre_pod::role_in(&spec).context("config.json")? {
        Role::Member(sandbox) if sandbox != arguments.id => return join(&arguments, &sandbox),
        Role::Member(_) | Role::Sandbox | Role::Standalone => {}
    }
    let identity = Identity::new(&arguments.address, &arguments.namespace, &arguments.id, bundle);
    remove_earlier_pod(&identity)?;
    let directory = identity.directory();
    state::make_directory(&directory)?;
    let address = serve(identity, begun_ns).inspect_err(|_| {
        // Only the daemon would remove it. Ignore this error: the original one is returned.
        let _ = state::remove_directory(&directory);
    })?;
    print(&address)
}

/// Binds the pod's socket and forks the daemon that serves it; returns the address.
fn serve(identity: Identity, begun_ns: u64) -> anyhow::Result<String> {
    let socket = identity.socket();
    let listener = UnixListener::bind(&socket).with_context(|| format!("binding {}", socket.display()))?;
    let address = socket_address(&identity);
    let start = daemon::Start {
        identity,
        listener,
        containerd: Some(nix::unistd::getppid()),
        begun_ns,
    };
    write_address(&address)?;
    sys::fork_into(move || daemon::run(start)).context("forking the daemon")?;
    Ok(address)
}

/// Prints the address of the sandbox's shim, for a container that joins a running pod.
fn join(arguments: &Arguments, sandbox: &str) -> anyhow::Result<()> {
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
    write_address(&socket_address(&identity))?;
    print(&socket_address(&identity))
}

/// The pod's socket as a URI.
fn socket_address(identity: &Identity) -> String {
    format!("unix://{}", identity.socket().display())
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

fn print(address: &str) -> anyhow::Result<()> {
    let text = start_response(address, std::env::var("MAX_SHIM_VERSION").ok().as_deref());
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The output of `start`: the address alone, for task.v2, or, if containerd supports version 3, a JSON
/// object.
fn start_response(address: &str, max_version: Option<&str>) -> String {
    match max_version.and_then(|version| version.parse::<u32>().ok()) {
        Some(3..) => serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string(),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_gets_the_form_that_it_reads() {
        assert_eq!(start_response("unix:///s", None), "unix:///s");
        assert_eq!(start_response("unix:///s", Some("2")), "unix:///s");
        let json = start_response("unix:///s", Some("3"));
        assert!(
            json.contains(r#""version":3"#) && json.contains(r#""address":"unix:///s""#),
            "{json}"
        );
    }
}
