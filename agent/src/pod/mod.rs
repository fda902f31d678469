//! What the containers of a pod share in the guest and none of them holds: the init of their pid namespace,
//! /dev/shm, and the sysctls of their network and IPC namespaces. And what is left of a container on the host's side: its files in the kernel's caches. Called by
//! `container` and `service`; knows no container.

mod files;
mod init;
mod shm;
mod sysctl;

pub use files::forget;
pub use init::SharedInit;
pub use shm::mount_shm;
pub use sysctl::{set_sysctls, take_shared};
