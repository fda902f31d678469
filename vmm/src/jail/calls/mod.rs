//! The profiles of the VMM's threads: what each kind of thread keeps in the jail, each system call with the
//! reason why it is needed. A virtio device names the profile of its worker in its [`crate::virtio::Spec`]; a
//! new device adds a file here, and its line in [`ALL`]. [`super::filter`] compiles the tables; no call may
//! be listed twice in a profile.

pub mod balloon;
pub mod blk;
mod common;
mod control;
pub mod fs;
pub mod mem;
pub mod net;
pub mod rng;
mod saver;
mod vcpu;
pub mod vsock;
mod worker;

use rustix::thread::CapabilitySet;

/// What a kind of thread keeps: capabilities and system calls.
#[derive(Debug)]
pub struct Profile {
    /// For messages and tests.
    pub name: &'static str,
    /// Kept of the process's capabilities.
    pub capabilities: CapabilitySet,
    /// Whether the thread gets a working directory and a umask of its own (CLONE_FS), because it changes
    /// them.
    pub own_working_directory: bool,
    /// Tables of the system calls that it may make.
    pub(super) calls: &'static [&'static [Call]],
}

impl Profile {
    /// All allowed system calls, of all threads first.
    pub(super) fn calls(&self) -> impl Iterator<Item = &'static Call> {
        self.calls.iter().copied().flatten()
    }

    /// Those that not every thread may make.
    pub fn own_calls(&self) -> impl Iterator<Item = &'static Call> {
        // The first table is that of all threads.
        self.calls.iter().skip(1).copied().flatten()
    }
}

/// Runs a vCPU.
pub static VCPU: Profile = Profile {
    name: "vcpu",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, vcpu::CALLS],
};

/// Runs a vCPU of a guest that is to be saved.
pub static SAVED_VCPU: Profile = Profile {
    name: "saved vcpu",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, vcpu::SAVED_CALLS],
};

/// The main thread of a VMM that saves its guest and exits.
pub static SAVER: Profile = Profile {
    name: "saver",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, saver::CALLS],
};

/// The main thread: the control socket and the VM's exit.
pub static CONTROL: Profile = Profile {
    name: "control",
    capabilities: CapabilitySet::empty(),
    own_working_directory: false,
    calls: &[common::CALLS, control::CALLS, blk::CALLS],
};

/// Every profile once. The process keeps the capabilities of all of them together.
pub static ALL: &[&Profile] = &[
    &VCPU,
    &SAVED_VCPU,
    &CONTROL,
    &SAVER,
    &balloon::PROFILE,
    &blk::PROFILE,
    &fs::PROFILE,
    &fs::SYNC_PROFILE,
    &net::PROFILE,
    &mem::PROFILE,
    &rng::PROFILE,
    &vsock::PROFILE,
    &vsock::STANDALONE,
];

/// `_IOW(KVMIO, 0xa5, struct kvm_msi)`: sends an interrupt to the guest.
pub(super) const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;

/// `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)`: maps host memory into the guest.
pub(super) const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;

/// An allowed system call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number on x86-64, such as [`libc::SYS_read`].
    pub number: i64,
    /// The condition on its arguments.
    pub argument: Argument,
    /// Which operation of ours makes it.
    pub reason: &'static str,
}

/// A condition on the lower 32 bits of an argument.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// Any arguments are allowed.
    Any,
    /// Argument `index` equals one of `values`.
    OneOf {
        /// Counted from 0.
        index: u8,
        /// The allowed values.
        values: &'static [u64],
    },
    /// Arguments 0 and 1 equal one of these pairs; None allows any argument 1.
    Options(&'static [(u64, Option<u64>)]),
    /// None: the call fails with ENOSYS, and whoever made it must do without.
    Unsupported,
    /// No bit of `bits` is set in argument `index`.
    Without {
        /// Counted from 0.
        index: u8,
        /// The forbidden bits.
        bits: u64,
    },
}

const fn any(number: i64, reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Any,
        reason,
    }
}

const fn unsupported(number: i64, reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Unsupported,
        reason,
    }
}

const fn one_of(number: i64, index: u8, values: &'static [u64], reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::OneOf { index, values },
        reason,
    }
}

const fn without(number: i64, index: u8, bits: u64, reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Without { index, bits },
        reason,
    }
}

const fn options(number: i64, values: &'static [(u64, Option<u64>)], reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Options(values),
        reason,
    }
}
