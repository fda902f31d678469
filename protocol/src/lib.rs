//! The interfaces between the programs, and what more than one of them needs:
//!
//! - between shim and VMM: the control socket ([`control`]), the console ring ([`console`]) and the table of
//!   expected streams ([`stream_table`]);
//! - between shim and agent: the ttrpc service ([`agent`]), vsock addresses ([`vsock`]), names ([`guest`]),
//!   and the check of an OCI spec, which both make ([`spec`], [`container_id`], [`cpu_list`]);
//! - files: the state of a pod ([`state`]) and the configuration ([`config`]);
//! - the places at which tests end a program ([`fault`]);
//! - parsing and output that several programs share: [`mountinfo`], [`proc_cgroup`],
//!   [`text`], [`bpf`].
//!
//! Only [`control::Channel`], [`console`], [`stream_table`], [`config`] and [`state`] do I/O.

#[cfg(feature = "agent")]
pub mod agent;
pub mod bpf;
#[cfg(feature = "config")]
pub mod config;
pub mod console;
pub mod container_id;
pub mod control;
pub mod cpu_list;
pub mod fault;
pub mod guest;
pub mod mountinfo;
pub mod proc_cgroup;
pub mod spec;
pub mod state;
pub mod stream_table;
pub mod text;
pub mod vsock;

/// Identifies what shim, VMM and agent must have in common: the version, and a hash of this crate's sources,
/// such as "0.1.0+0123456789abcdef". Two builds with different messages or a different table of spec fields
/// have different ids.
pub const BUILD_ID: &str = env!("NACRE_BUILD_ID");
