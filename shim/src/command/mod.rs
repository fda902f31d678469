//! What containerd executes this program for: one file a command.

pub mod delete;
pub mod info;
pub mod start;
