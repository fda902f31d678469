//! The pod engine: one microVM and its containers, from the VMM's start to the removal of the last file on
//! the host. It is called through one handle ([`Handle`]) and reports through one trait ([`EventSink`]); it
//! speaks no message of containerd's, so that another door (a command line like runc's) can use it as it is.
//!
//! ```text
//! door ──Handle::call(Call)──▶ sandbox ──┬─▶ vm        starts and watches nacre-vmm
//!      ◀──EventSink::publish── (one task, ├─▶ guest     the agent's ttrpc client
//!                               one queue)├─▶ rootfs    detached host mounts, moved into the VMM's namespace
//!                                         ├─▶ mirror    copies in the guest of volumes that change
//!                                         ├─▶ forward   port-forward: the host's localhost to the guest's
//!                                         ├─▶ template  snapshots of booted guests, from which VMs continue
//!                                         ├─▶ streams   FIFOs, files and loggers of standard streams
//!                                         └─▶ container what a container and its processes may do when
//! ```
//! Everything runs on one thread: the caller provides a current-thread tokio runtime, and forks (in `sys`)
//! rely on it.

mod annotations;
mod bundle;
mod cgroup;
mod cgroup_files;
mod clean_up;
pub mod clock;
mod container;
mod error;
mod event;
mod exit;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod guest;
mod guest_text;
mod hooks;
mod identity;
pub mod log;
mod mirror;
mod mount;
mod network;
mod patience;
mod pod_files;
mod pod_spec;
mod poststop;
mod process_id;
mod rootfs;
mod sandbox;
mod scheduling;
mod shared_mounts;
mod size;
mod splice;
pub mod state;
mod streams;
pub mod sys;
pub mod template;
mod vm;

pub use annotations::{Role, role_in};
pub use clean_up::{Cleaned, clean_up, recorded_address};
pub use container::{CreateRequest, Deleted, ExecRequest, Freeze, Reply, TaskState};
pub use error::{Error, StepFailed};
pub use event::{EventSink, TaskEvent};
pub use exit::Exit;
pub use guest::CgroupFiles;
pub use identity::{Identity, read_spec};
pub use mount::{IdMap, IdRange, Mount};
pub use pod_spec::{Lifetime, PodSpec};
pub use process_id::ProcessId;
pub use sandbox::{Call, Handle, Listed, PodCall, PodPhase, PodView, Sandbox, View};
pub use size::SizeHints;
pub use streams::{StdioPaths, TerminalSize};
