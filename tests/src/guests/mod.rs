//! Real guests under standalone `nacre-vmm`, each with a workload of this crate as /init. `nacre-guests` runs
//! the tests, `nacre-bench` measures with the same guests. They need no containerd.
//!
//! Each test has a file of its own, with its host half ([`Test`]) and its guest half ([`Workload`]). The
//! kernel command line names the workload and its parameters. A workload reports what it saw in a file of the
//! shared directory and powers the guest off, or prints why it failed and resets the guest ([`workload`]).
//! Conversations go over vsock: the workload listens at [`vsock::PORT`], then dials the agent's port, which
//! the VMM reports.

pub mod coherence;
pub mod disk;
pub mod exits;
pub mod file_times;
pub mod initramfs;
pub mod io;
pub mod large;
pub mod late_disks;
pub mod local_files;
pub mod memory_plugs;
pub mod memory_returns;
pub mod network;
pub mod pause;
pub mod randomness;
pub mod requests;
pub mod snapshot;
pub mod threads;
pub mod vcpus;
mod vm;
mod vsock;
pub mod workload;

use anyhow::Result;
use serde_json::Value;

pub use vm::{Build, Guest, Options, OtherVmm, until_connected};

/// The host half of a test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// What it shows; `nacre-guests NAME` selects by it.
    pub name: &'static str,
    /// Boots guests of the build and checks what their workloads report.
    pub run: fn(&Build) -> Result<()>,
}

/// The guest half of a test.
#[derive(Clone, Copy)]
pub struct Workload {
    /// Value of `workload=` on the kernel command line.
    name: &'static str,
    /// Runs as PID 1 and returns the report.
    run: fn(&workload::Parameters) -> Result<Value>,
}

/// All tests.
pub fn tests() -> Vec<Test> {
    [
        vcpus::TESTS,
        io::TESTS,
        large::TESTS,
        pause::TESTS,
        snapshot::TESTS,
        randomness::TESTS,
        local_files::TESTS,
        requests::TESTS,
        coherence::TESTS,
        memory_returns::TESTS,
        memory_plugs::TESTS,
        network::TESTS,
        disk::TESTS,
        late_disks::TESTS,
    ]
    .concat()
}

const WORKLOADS: &[Workload] = &[
    vcpus::WORKLOAD,
    io::WORKLOAD,
    large::WORKLOAD,
    pause::WORKLOAD,
    snapshot::WORKLOAD,
    randomness::WORKLOAD,
    local_files::WORKLOAD,
    requests::WORKLOAD,
    coherence::WORKLOAD,
    memory_returns::WORKLOAD,
    memory_plugs::WORKLOAD,
    network::WORKLOAD,
    disk::WORKLOAD,
    late_disks::WORKLOAD,
    file_times::WORKLOAD,
];

const fn test(name: &'static str, run: fn(&Build) -> Result<()>) -> Test {
    Test { name, run }
}
