//! Makes taps and ties each to a link of the namespace that the process is in. If a step fails, what was made
//! is removed again, so that the namespace is as it was.

use std::os::fd::OwnedFd;

use nacre_netlink::{Error as NetlinkError, Message, Socket, link, redirect};

use super::plan::Tie;
use super::{Error, Owner, release};
use crate::sys;

/// The taps' names; the kernel puts the first free number in.
const TAP_NAME: &str = "nacre%d";

/// Ties all links; returns the taps of each.
pub fn tie(socket: &mut Socket, ties: &[Tie], owner: &Owner) -> Result<Vec<Vec<OwnedFd>>, Error> {
    let made = tie_all(socket, ties, owner);
    if made.is_err() {
        // The taps are closed. The error to report is the first one.
        let _ = release::remove_redirections(socket, owner.key.as_bytes(), false);
    }
    made
}

fn tie_all(socket: &mut Socket, ties: &[Tie], owner: &Owner) -> Result<Vec<Vec<OwnedFd>>, Error> {
    let mut taps = Vec::new();
    for tie in ties {
        taps.push(make_tap(tie, owner.queue_pairs)?);
    }
    // One list is cheaper than a question for each.
    let links = socket
        .dump(link::list(), usize::MAX, link::parse)
        .map_err(|source| Error::Read { what: "taps", source })?;
    for (tie, tap) in ties.iter().zip(&taps) {
        let index = links
            .iter()
            .find(|link| link.name == tap.name)
            .map(|link| link.index);
        let index = index.ok_or_else(|| failed(tie, "finding its tap")("it is gone"))?;
        redirect(socket, tie, index, owner)?;
    }
    Ok(taps.into_iter().map(|tap| tap.queues).collect())
}

fn failed<E: std::fmt::Display>(tie: &Tie, step: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Tie {
        link: tie.name.clone(),
        step,
        reason: error.to_string(),
    }
}

/// A tap with one descriptor per queue pair. It exists as long as its descriptors.
fn make_tap(tie: &Tie, queue_pairs: u8) -> Result<sys::Tap, Error> {
    let tap = sys::Tap::make(TAP_NAME, queue_pairs).map_err(failed(tie, "creating a tap"))?;
    // This namespace's own IPv6 must not speak to the guest. There is no file in a kernel without IPv6.
    let file = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", tap.name);
    match std::fs::write(&file, "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let reason = format!("{file}: {error}");
            Err(failed(tie, "switching off IPv6 on its tap")(reason))
        }
        _ => Ok(tap),
    }
}

/// The link's own redirection comes last: until then its packets go to the namespace.
fn redirect(socket: &mut Socket, tie: &Tie, tap: u32, owner: &Owner) -> Result<(), Error> {
    let key = owner.key.as_bytes();
    let mut request = |step, message: Message| socket.request(message).map_err(failed(tie, step));
    request("setting its tap's MTU", link::set_mtu(tap, tie.mtu.into()))?;
    // CNI plugins make links without a queue, which would let a tap drop every packet.
    if tie.queue_length > 0 {
        let size = link::set_queue_length(tap, tie.queue_length);
        request("setting its tap's queue length", size)?;
    }
    request("adding the tap's ingress qdisc", redirect::add_qdisc(tap))?;
    request(
        "redirecting the tap to it",
        redirect::add_filter(tap, tie.index, key),
    )?;
    request("setting its tap up", link::set_up(tap))?;
    redirect_link(socket, tie, tap, owner)
}

/// Redirects what arrives on the link to its tap. A qdisc without a redirection is nobody's, so it would not be
/// found again: it is removed at once.
pub fn redirect_link(socket: &mut Socket, tie: &Tie, tap: u32, owner: &Owner) -> Result<(), Error> {
    socket.request(redirect::add_qdisc(tie.index)).map_err(|error| {
        let reason = if is_taken(&error) {
            "it has one already, of another pod or program (`tc qdisc show` in the namespace lists it)"
                .to_owned()
        } else {
            error.to_string()
        };
        failed(tie, "adding an ingress qdisc")(reason)
    })?;
    let filter = redirect::add_filter(tie.index, tap, owner.key.as_bytes());
    socket.request(filter).map_err(|error| {
        // Ignore this error: the original one is returned.
        let _ = socket.request(redirect::remove_qdisc(tie.index));
        failed(tie, "redirecting it to its tap")(error)
    })
}

fn is_taken(error: &NetlinkError) -> bool {
    error.errno() == Some(libc::EEXIST)
}
