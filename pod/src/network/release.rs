//! Removes the redirections of a pod from its network namespace. Its taps are gone when nobody has their
//! descriptors any more, with the VMM. Safe at any time: what is not there is no error, neither a namespace
//! that was deleted nor a link.

use nacre_netlink::{Error as NetlinkError, Socket, redirect};
use nacre_protocol::state::NetworkNamespace;

use super::Namespace;
use crate::sys;

/// Removes what was made for the pod with `key` in the namespace `record`.
///
/// # Errors
/// The reason, with the namespace's path.
pub async fn release(record: &NetworkNamespace, key: &str) -> Result<(), String> {
    let Some(namespace) = Namespace::recorded(record)? else {
        return Ok(());
    };
    let key = key.to_owned();
    let done = sys::in_child(move || in_namespace(&namespace, &key)).await;
    done.map_err(|error| format!("running a child process: {error}"))?
}

/// As [`release`], for commands that run without a runtime.
///
/// # Errors
/// As [`release`].
pub fn release_blocking(record: &NetworkNamespace, key: &str) -> Result<(), String> {
    let Some(namespace) = Namespace::recorded(record)? else {
        return Ok(());
    };
    let done = sys::in_child_blocking(sys::CHILD_DEADLINE, || in_namespace(&namespace, key));
    done.map_err(|error| format!("running a child process: {error}"))?
}

fn in_namespace(namespace: &Namespace, key: &str) -> Result<(), String> {
    let released = match namespace.join() {
        // A namespace of another type, which the start refused: nothing was made in it.
        Err(nix::Error::EINVAL) => return Ok(()),
        Err(error) => Err(format!("entering it: {error}")),
        Ok(()) => Socket::open()
            .map_err(|error| error.to_string())
            .and_then(|mut socket| {
                let is_tying = namespace.record.is_tying;
                remove_redirections(&mut socket, key.as_bytes(), is_tying).map_err(|error| error.to_string())
            }),
    };
    let path = namespace.path().display();
    released.map_err(|reason| format!("network namespace {path}: removing the redirections: {reason}"))
}

/// Removes the ingress qdiscs with a filter of `owner` in the namespace that the process is in. If `is_tying`,
/// also those without any filter: the kernel can't add both at once, and the child that did may have been killed
/// between.
pub fn remove_redirections(socket: &mut Socket, owner: &[u8], is_tying: bool) -> Result<(), NetlinkError> {
    let qdiscs = socket.dump(redirect::list_qdiscs(), usize::MAX, redirect::parse_qdisc)?;
    for index in qdiscs {
        let filter = |body: &[u8]| Some(redirect::parse(body));
        // A link may go at any time.
        let owners = match socket.dump(redirect::list(index), usize::MAX, filter) {
            Ok(owners) => owners,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let is_ours = owners.iter().flatten().any(|found| found == owner);
        if !(is_ours || is_tying && owners.is_empty()) {
            continue;
        }
        match socket.request(redirect::remove_qdisc(index)) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL))
}
