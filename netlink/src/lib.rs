//! rtnetlink(7) for a pod's network: what the engine reads in the pod's network namespace on the host, and
//! what the agent creates in the guest, both as the messages of `nacre_protocol::agent` ([`Network`] and what
//! is in it); and on the host the redirection of all packets between two links ([`redirect`]).
//!
//! Synchronous, one request at a time, in the network namespace that the calling thread is in when it opens
//! its [`Socket`]. A module per object has its parser, which is pure, and its requests. Never retries, and
//! decides nothing: what belongs to a pod is decided in `pod/src/network`.
//!
//! [`Network`]: nacre_protocol::agent::Network

pub mod address;
pub mod link;
mod message;
pub mod neighbour;
pub mod redirect;
pub mod route;
pub mod rule;
pub mod show;
mod socket;

pub use message::Message;
pub use socket::{Error, Socket};

/// A parser's way to the name of a link by its interface index.
pub type NameOf<'a> = &'a dyn Fn(u32) -> Option<String>;
/// A request's way to the interface index of a link by its name.
pub type IndexOf<'a> = &'a dyn Fn(&str) -> Option<u32>;
