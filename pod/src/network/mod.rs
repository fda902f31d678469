//! The pod's network on the host: reads the links of the pod's network namespace, makes a tap for each, and
//! ties the two by redirecting everything that arrives on one to the other. The VMM gets the taps, the guest
//! gets the same addresses and routes. The addresses stay on the host's links, where no packet reaches them.
//!
//! ```text
//! network namespace of the pod                         VM
//!   eth0 ─ingress: redirect─▶ tap nacre0 ═descriptor═▶ virtio-net, called eth0, with eth0's MAC and MTU
//!   eth0 ◀─redirect :ingress─ tap nacre0 ◀═══════════
//! ```
//! `namespace` opens and identifies the namespace, `read` lists what is in it, `plan` decides what the guest
//! gets (pure), `tie` makes taps and redirections, `release` removes them. All that enters the namespace runs
//! in a forked child. The sandbox calls this; `clean_up` releases the network of a pod whose shim died.

mod namespace;
mod plan;
mod read;
mod release;
#[cfg(test)]
mod tests;
mod tie;

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nacre_netlink as netlink;
use nacre_protocol::agent::Network;
use protobuf::Message as _;
use serde::{Deserialize, Serialize};

use crate::sys;
pub use namespace::{Namespace, has_links};
pub use release::{release, release_blocking};

/// Most links that a pod's VM gets.
pub const MAX_LINKS: usize = 16;
/// Most queue pairs of one link.
pub const MAX_QUEUE_PAIRS: u8 = 8;

/// Why a pod's network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not that of a network namespace that the pod can have.
    #[error("network namespace {}: {reason}", path.display())]
    Namespace {
        /// The path.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A list of the namespace's objects cannot be read.
    #[error("reading its {what}: {source}")]
    Read {
        /// The list's name.
        what: &'static str,
        /// Why.
        source: netlink::Error,
    },
    /// The guest can't get an object of the namespace.
    #[error("{object}: {reason}")]
    Unsupported {
        /// The object, such as `link eth0`.
        object: String,
        /// Why.
        reason: String,
    },
    /// More objects than a pod may have.
    #[error("it has {count} {what}, but a pod has at most {most}")]
    TooMany {
        /// What is counted.
        what: String,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// A tap or a redirection cannot be made.
    #[error("link {link}: {step}: {reason}")]
    Tie {
        /// The link.
        link: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The child that ties was killed: what it has made is released with [`NetworkNamespace::is_tying`].
    ///
    /// [`NetworkNamespace::is_tying`]: nacre_protocol::state::NetworkNamespace::is_tying
    #[error("tying its links: {0}")]
    Unfinished(std::io::Error),
    /// A system call outside of the namespace's objects failed.
    #[error("{step}: {reason}")]
    System {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        reason: String,
    },
}

/// A link that is tied to taps, for the VMM.
#[derive(Debug)]
pub struct Nic {
    /// The link's name.
    pub link: String,
    /// Its address, which the guest's device has, too.
    pub mac: [u8; 6],
    /// In bytes, 1280..=65521.
    pub mtu: u16,
    /// One tap descriptor per queue pair.
    pub taps: Vec<OwnedFd>,
}

/// A pod's network, ready for the VMM and the guest.
#[derive(Debug, Default)]
pub struct Tied {
    /// What the agent sets up.
    pub network: Network,
    /// What the VMM gets, in the order of the links' indices.
    pub nics: Vec<Nic>,
    /// Links that the guest does not get, and why.
    pub ignored: Vec<String>,
}

/// What the child reports, with the taps' descriptors: a file with the [`Network`], then those of each link.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    nics: Vec<NicReport>,
    ignored: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct NicReport {
    link: String,
    mac: [u8; 6],
    mtu: u16,
    queue_pairs: u8,
}

/// How the links of a namespace are tied.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The pod's key, which marks what is made for it.
    pub key: String,
    /// Queue pairs of each tap: one per vCPU, [`MAX_QUEUE_PAIRS`] at most.
    pub queue_pairs: u8,
}

/// Makes the taps for the links of `namespace` and ties them. If it fails, nothing is left, except by
/// [`Error::Unfinished`].
///
/// # Errors
/// The reason, with the object that it is about.
pub async fn tie_links(namespace: Namespace, owner: Owner) -> Result<Tied, Error> {
    let path = namespace.path().clone();
    let done = sys::in_child_with_files(|| {
        in_namespace(&namespace, &owner).map_err(|error| {
            if let Error::Namespace { reason, .. } = error {
                reason
            } else {
                error.to_string()
            }
        })
    });
    let result = done.await.map_err(Error::Unfinished)?;
    let (report, files) = result.map_err(|reason| Error::Namespace { path, reason })?;
    received(report, files)
}

fn system<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::System {
        step,
        reason: error.to_string(),
    }
}

/// The child's part, which does not return to the shim's namespace.
fn in_namespace(namespace: &Namespace, owner: &Owner) -> Result<(Report, Vec<OwnedFd>), Error> {
    namespace.enter()?;
    let mut socket = netlink::Socket::open().map_err(system("opening a netlink socket"))?;
    let found = read::read(&mut socket)?;
    let plan = plan::plan(found)?;
    let file = sys::memory_file("nacre-network", 0).map_err(system("creating a memory file"))?;
    let bytes = plan
        .network
        .write_to_bytes()
        .map_err(system("encoding the network"))?;
    file.write_all_at(&bytes, 0)
        .map_err(system("writing the network"))?;
    let taps = tie::tie(&mut socket, &plan.ties, owner)?;
    let mut report = Report {
        nics: Vec::new(),
        ignored: plan.ignored,
    };
    let mut files = vec![OwnedFd::from(file)];
    for (tie, taps) in plan.ties.into_iter().zip(taps) {
        report.nics.push(NicReport {
            link: tie.name,
            mac: tie.mac,
            mtu: tie.mtu,
            queue_pairs: u8::try_from(taps.len()).unwrap_or(u8::MAX),
        });
        files.extend(taps);
    }
    Ok((report, files))
}

/// The parent's part: sorts the descriptors.
fn received(report: Report, files: Vec<OwnedFd>) -> Result<Tied, Error> {
    let incomplete = || Error::System {
        step: "receiving the taps",
        reason: "the child process sent fewer than it reported".to_owned(),
    };
    let mut files = files.into_iter();
    let file = std::fs::File::from(files.next().ok_or_else(incomplete)?);
    let length = file.metadata().map_err(system("reading the network"))?.len();
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0)
        .map_err(system("reading the network"))?;
    let mut tied = Tied {
        network: Network::parse_from_bytes(&bytes).map_err(system("reading the network"))?,
        nics: Vec::new(),
        ignored: report.ignored,
    };
    for nic in report.nics {
        let taps: Vec<OwnedFd> = files.by_ref().take(nic.queue_pairs.into()).collect();
        if taps.len() != usize::from(nic.queue_pairs) {
            return Err(incomplete());
        }
        tied.nics.push(Nic {
            link: nic.link,
            mac: nic.mac,
            mtu: nic.mtu,
            taps,
        });
    }
    Ok(tied)
}
