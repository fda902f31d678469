//! The fields of the OCI runtime specification (1.3, `config.json`): what becomes of each, as a table, and the walk over a
//! spec by it. The shim walks what containerd hands it and so decides what reaches the guest; the agent walks what
//! arrives; the documentation and its check list the same table. Pure.

mod devices;
mod node;
mod options;
mod table;
mod walk;
mod words;

pub use devices::add_name;
pub use node::{Fate, Field, Kind, Leaf, Node, Where, leaves};
pub use options::{FILE_SYSTEMS, MountKind, MountOption, OPTIONS, OptionFate, option};
pub use table::{PROCESS, RESOURCES, SPEC};
pub use walk::{Finding, Findings, find_broken_text, sift, sift_process, sift_update};

/// The largest spec, bytes of JSON: what follows it to the guest fits into a message (4 MiB).
pub const MAX_SPEC: usize = 3 << 20;
/// Most mounts of a container.
pub const MAX_MOUNTS: usize = 1024;

#[cfg(test)]
mod tests;
