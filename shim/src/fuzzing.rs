//! The fuzzer's targets of containerd's door: what it makes of a guest's counters, and of CRI's messages. Called by
//! the programs in `fuzz/`, and by the test below with the inputs that are committed there.
//!
//! The program does not contain this module.

#![allow(missing_docs, reason = "names say all")]

use containerd_shim_protos::protobuf::Message as _;
use nacre_fuzzing::Targets;
use nacre_pod::CgroupFiles;

use crate::metrics;
use crate::proto::sandbox::CreateSandboxRequest;
use crate::sandbox::pod_spec;

/// Every target by its name.
pub const TARGETS: Targets = &[("metrics", metrics), ("sandbox", sandbox)];

/// The files that are read.
const FILES: [&str; 20] = [
    "pids.current",
    "pids.max",
    "cpu.stat",
    "cpu.pressure",
    "memory.stat",
    "memory.current",
    "memory.max",
    "memory.swap.current",
    "memory.swap.max",
    "memory.peak",
    "memory.swap.peak",
    "memory.pressure",
    "memory.events",
    "io.stat",
    "io.pressure",
    "rdma.current",
    "rdma.max",
    "hugetlb.2MB.current",
    "hugetlb.1GB.max",
    "hugetlb..current",
];
/// A message to containerd has at most 4 MiB; the guest's files are bounded by their number of lines.
const MAX_METRICS: usize = 256 << 10;

/// Files of a cgroup, each a byte for its name and lines up to a zero.
fn metrics(data: &[u8]) {
    let files = data.split(|byte| *byte == 0).filter_map(|file| {
        let (name, content) = file.split_first()?;
        let name = FILES[usize::from(*name) % FILES.len()];
        Some((name.to_owned(), content.to_vec()))
    });
    let files: CgroupFiles = files.collect();
    let metrics = metrics::read(&files).write_to_bytes().unwrap();
    assert!(metrics.len() <= MAX_METRICS, "{} bytes", metrics.len());
}

/// A CreateSandbox request; its options are CRI's configuration if its first byte says so.
fn sandbox(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let request = if kind % 2 == 0 {
        CreateSandboxRequest::parse_from_bytes(data)
    } else {
        let mut request = CreateSandboxRequest::new();
        request.options.mut_or_insert_default().type_url = "runtime.v1.PodSandboxConfig".to_owned();
        request.options.mut_or_insert_default().value = data.to_vec();
        Ok(request)
    };
    if let Ok(request) = request {
        // A pod that can't be made is refused.
        let _ = pod_spec(&request, "namespace");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn committed_inputs_of_every_target_pass() {
        nacre_fuzzing::pass_committed_inputs(super::TARGETS);
    }
}
