//! Nacre's virtual machine monitor: one process, one microVM.

pub mod jail;
pub mod probe;
pub mod virtio;
