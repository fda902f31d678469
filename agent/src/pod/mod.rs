//! What the containers of a pod share in the guest and none of them holds: the init of their pid namespace,
//! their user namespace, /dev/shm, mirrors of host directories, and the sysctls of their network and IPC
//! namespaces. And what is left of a container on the host's side: its files in the kernel's caches. Called
//! by `container`, `service`, `network` and `memory`; knows no container.

mod files;
mod init;
mod mirror;
mod shm;
mod sysctl;
mod tmpfs;
mod users;

pub use files::{enter_volumes, forget};
pub use init::{SharedInit, namespaces_of};
pub use mirror::{change_mirror, remove_mirror};
pub use shm::mount_shm;
pub use sysctl::{set_own_sysctls, set_sysctls, take_shared};
pub use users::{enter_users, in_initial_network};
