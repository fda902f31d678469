//! The commands that containerd executes this program for, one file each.

pub mod delete;
pub mod info;
pub mod start;
