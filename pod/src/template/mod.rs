//! Templates: snapshots of booted guests, from which the VMs of new pods continue. Only the host's root makes
//! and reads them, in one directory ([`Store`]). `sandbox` opens the one that fits a pod; if there is none, a
//! process of its own makes it once the pod has started ([`maker`]). `nacre template` calls the same functions.
//!
//! ```text
//! /run/nacre/templates/       a tmpfs of its own (file_system)
//!   <key>/             a template; its name identifies its kind
//!     state, memory    written by nacre-vmm --save
//!     kind.json        Kind
//!   <key>.building/    locked (flock) by the process that makes the template; renamed from there
//!   <key>.failed       why it could not be made; no pod tries again for a while
//! ```
//!
//! Nothing here decides whether a snapshot fits this host: the VMM does, and boots the guest if not.

mod error;
mod file_system;
mod kind;
pub mod maker;
mod own_files;
mod store;

pub use error::{Absent, Error};
pub use kind::Kind;
pub use store::{Begun, Collected, Entry, MAX_MEMORY_MIB, Store, Template, TemplateId};

#[cfg(test)]
mod tests;
