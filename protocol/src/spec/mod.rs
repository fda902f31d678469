//! The check of an OCI spec (`config.json` of the OCI runtime specification 1.3). A table says how each field
//! is handled; [`check`] applies it and returns a [`CheckedSpec`]. The shim checks what containerd sends, the
//! agent checks what the shim sends, and docs/conformance.md is generated from the table. Not here: what only
//! the host can decide (sources of bind mounts, namespaces of the pod) and what only the guest can decide
//! (which devices and cgroup files it has). Pure.

mod checked;
mod devices;
mod filter;
mod findings;
mod mounts;
mod names;
mod parse;
mod resources;
mod schema;
mod table;
mod value;

pub use checked::{
    Checked, CheckedProcess, CheckedResources, CheckedSpec, check, check_process, check_resources,
};
pub use devices::add_name;
pub use findings::{Finding, Findings, Refused, quoted, shown};
pub use mounts::{FILE_SYSTEMS, MountKind, MountOption, OPTIONS, OptionHandling, option};
pub use schema::{AppliedIn, Field, Handling, Kind, Leaf, Node, leaves};
pub use table::{PROCESS, RESOURCES, SPEC};

/// The largest spec, bytes of JSON: the guest's version of it must fit into a ttrpc message of 4 MiB.
pub const MAX_SPEC: usize = 3 << 20;
/// Most mounts of a container, and most masked and most read-only paths, each of which becomes a mount.
pub const MAX_MOUNTS: usize = 1024;
/// Most device rules of a container: the agent compiles each to up to seven BPF instructions, which must fit
/// into a message to its helper and stay below the kernel's limit.
pub const MAX_DEVICE_RULES: usize = 256;

#[cfg(test)]
mod tests;
