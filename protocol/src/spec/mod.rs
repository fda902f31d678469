//! The fields of the OCI runtime specification 1.3 (`config.json`): a table that says how each is handled, and a filter
//! that applies it to a spec. The shim filters what containerd sends, the agent what the shim sends, and
//! docs/conformance.md is generated from the table. Pure.

mod devices;
mod filter;
mod findings;
mod mounts;
mod names;
mod parse;
mod schema;
mod table;
mod value;

pub use devices::add_name;
pub use filter::{filter_process, filter_spec, filter_update};
pub use findings::{Finding, Findings};
pub use mounts::{FILE_SYSTEMS, MountKind, MountOption, OPTIONS, OptionHandling, option};
pub use parse::find_broken_text;
pub use schema::{AppliedIn, Field, Handling, Kind, Leaf, Node, leaves};
pub use table::{PROCESS, RESOURCES, SPEC};

/// The largest spec, bytes of JSON: the guest's version of it must fit into a ttrpc message of 4 MiB.
pub const MAX_SPEC: usize = 3 << 20;
/// Most mounts of a container, and most masked and most read-only paths, each of which becomes a mount.
pub const MAX_MOUNTS: usize = 1024;

#[cfg(test)]
mod tests;
