//! What crosses a border: between shim and VMM ([`control`]), between shim and guest agent ([`agent`], [`vsock`],
//! [`guest`]). Nothing here does I/O except [`control::Channel`], which owns the
//! framing of its socket, and [`console`], which owns the layout of its file. [`state`] is what a pod leaves on disk,
//! [`config`] what an operator writes.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "config")]
pub mod config;
pub mod console;
pub mod container_id;
pub mod control;
pub mod cpu_list;
pub mod guest;
pub mod mountinfo;
pub mod spec;
pub mod state;
pub mod text;
pub mod vsock;

/// Identifies what shim, VMM and agent must have in common: the version, and a hash of this crate's sources, such as
/// "0.1.0+0123456789abcdef". Two builds with different messages or a different table of spec fields have different ids.
pub const BUILD_ID: &str = env!("NACRE_BUILD_ID");
