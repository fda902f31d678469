//! `start`: makes the pod's directory and socket, forks the daemon, prints the address. It is on the way of every
//! container, so it does the least: no runtime, no configuration, no thread.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, bail};

use nacre_pod::{Identity, clean_up, state, sys};

use crate::arguments::Arguments;
use crate::daemon;

/// Runs the command; `begun_ns` is when containerd executed it.
pub fn run(arguments: Arguments, begun_ns: u64) -> anyhow::Result<()> {
    let bundle = std::env::current_dir().context("working directory")?;
    let spec = std::fs::read(nacre_pod::config_json(&bundle)).unwrap_or_default();
    if let Some(sandbox) = sandbox_of(&spec).filter(|sandbox| *sandbox != arguments.id) {
        return join(&arguments, &sandbox);
    }
    let identity = Identity::new(&arguments.address, &arguments.namespace, &arguments.id, bundle);
    make_room(&identity)?;
    let directory = identity.directory();
    state::make_directory(&directory)?;
    let address = serve(identity, begun_ns).inspect_err(|_| {
        // Without a daemon nobody else would remove it, and the next `start` of this id would find it.
        let _ = state::remove_directory(&directory);
    })?;
    print(&address)
}

/// Binds the pod's socket and forks the daemon that serves it; gives the address.
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
    keep(&address)?;
    sys::fork_into(move || daemon::run(start)).context("forking the daemon")?;
    Ok(address)
}

/// A container of a pod that is there: its shim is the sandbox's.
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
    keep(&socket_address(&identity))?;
    print(&socket_address(&identity))
}

/// The pod's socket as containerd wants it.
fn socket_address(identity: &Identity) -> String {
    format!("unix://{}", identity.socket().display())
}

/// The sandbox that a container joins, by the annotations of its bundle's spec; None where it is its own.
fn sandbox_of(config_json: &[u8]) -> Option<String> {
    const TYPE: &str = "io.kubernetes.cri.container-type";
    const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    // `start` is on the way of every container: most specs are not read further than this.
    config_json
        .windows(SANDBOX.len())
        .find(|window| *window == SANDBOX.as_bytes())?;
    let spec: Spec = serde_json::from_slice(config_json).ok()?;
    let is_container = spec.annotations.get(TYPE).is_some_and(|kind| kind == "container");
    spec.annotations.get(SANDBOX).filter(|_| is_container).cloned()
}

/// A containerd that restarts reads the address from the bundle; up to 1.6 it leaves writing it to the shim.
fn keep(address: &str) -> anyhow::Result<()> {
    std::fs::write(".address", address)
        .and_then(|()| std::fs::rename(".address", "address"))
        .context("writing the address into the bundle")
}

/// What an earlier pod of the same name left goes, unless it lives.
fn make_room(identity: &Identity) -> anyhow::Result<()> {
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
    // An unreadable pod.json is not reported here: containerd takes what `start` writes to standard error for the address.
    clean_up(identity).context("removing what an earlier pod of this name left")?;
    Ok(())
}

fn print(address: &str) -> anyhow::Result<()> {
    let text = answer(address, std::env::var("MAX_SHIM_VERSION").ok().as_deref());
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The address alone is what every containerd understands (it then speaks task.v2); one that says so gets version 3.
fn answer(address: &str, max_version: Option<&str>) -> String {
    match max_version.and_then(|version| version.parse::<u32>().ok()) {
        Some(3..) => serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string(),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_a_pod_name_their_sandbox() {
        let spec = |kind: &str| {
            format!(
                r#"{{"annotations":{{"io.kubernetes.cri.container-type":"{kind}","io.kubernetes.cri.sandbox-id":"s1"}}}}"#
            )
        };
        assert_eq!(sandbox_of(spec("container").as_bytes()), Some("s1".into()));
        assert_eq!(sandbox_of(spec("sandbox").as_bytes()), None);
        assert_eq!(sandbox_of(br#"{"annotations":{}}"#), None);
        assert_eq!(sandbox_of(b"not json"), None);
    }

    #[test]
    fn each_containerd_gets_the_form_that_it_reads() {
        assert_eq!(answer("unix:///s", None), "unix:///s");
        assert_eq!(answer("unix:///s", Some("2")), "unix:///s");
        let json = answer("unix:///s", Some("3"));
        assert!(
            json.contains(r#""version":3"#) && json.contains(r#""address":"unix:///s""#),
            "{json}"
        );
    }
}
