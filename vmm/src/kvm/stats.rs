//! KVM's own counters of a vCPU (Linux 5.14 and later). They include the exits that KVM handles itself, such
//! as CPUID, MSRs and page faults. Read on request, never by a vCPU thread.
//!
//! File format (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD): header, descriptors, values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kvm_ioctls::VcpuFd;

/// Names of the counters that are reported: reasons for exits.
const REPORTED: &[&str] = &[
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "irq_window_exits",
    "request_irq_exits",
    "signal_exits",
    "hypercalls",
    "insn_emulation",
    "irq_injections",
    "pf_taken",
    "pf_fixed",
    "pf_guest",
    "tlb_flush",
];
/// Size of `struct kvm_stats_header`, in bytes.
const HEADER_BYTES: usize = 24;
/// Size of `struct kvm_stats_desc` without the name, in bytes.
const DESCRIPTOR_BYTES: usize = 16;
/// Limit of what is read, in bytes; no kernel's file is as large.
const MAX_BYTES: usize = 256 * 1024;

/// The open statistics file of one vCPU.
#[derive(Debug)]
pub struct Statistics(File);

impl Statistics {
    /// Opens the file of `vcpu`; None on a kernel before 5.14.
    #[must_use]
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        super::raw::statistics(vcpu).map(Self)
    }

    /// Adds the counters to those in `counts`, as `kvm <name>`.
    ///
    /// # Errors
    /// The error of pread(2), or `InvalidData` if the file does not have the documented format.
    pub fn add_counts(&self, counts: &mut BTreeMap<String, u64>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        while bytes.len() < MAX_BYTES {
            let read = self.0.read_at(&mut buffer, bytes.len() as u64)?;
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
        for (name, value) in parse(&bytes).ok_or(io::ErrorKind::InvalidData)? {
            if REPORTED.contains(&name.as_str()) && value > 0 {
                let sum = counts.entry(format!("kvm {name}")).or_default();
                *sum = sum.saturating_add(value);
            }
        }
        Ok(())
    }
}

/// The name and the first value of each counter; None if the format is wrong.
fn parse(bytes: &[u8]) -> Option<Vec<(String, u64)>> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let usize_at = |at: usize| usize::try_from(u32_at(at)?).ok();
    let (name_size, count) = (usize_at(4)?, usize_at(8)?);
    let (descriptors, data) = (usize_at(16)?, usize_at(20)?);
    if bytes.len() < HEADER_BYTES || count > MAX_BYTES / DESCRIPTOR_BYTES {
        return None;
    }
    let mut counters = Vec::with_capacity(count);
    for index in 0..count {
        let at = descriptors.checked_add(index.checked_mul(name_size.checked_add(DESCRIPTOR_BYTES)?)?)?;
        let offset = data.checked_add(usize_at(at.checked_add(8)?)?)?;
        let name = bytes.get(at.checked_add(DESCRIPTOR_BYTES)?..)?.get(..name_size)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let value = u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?);
        counters.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    Some(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statistics_file_is_parsed_and_a_damaged_one_refused() {
        let mut bytes = Vec::new();
        for word in [0u32, 8, 2, 0, 24, 24 + 2 * 24] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for (offset, name) in [(0u32, b"exits\0\0\0"), (8, b"pf_fixed")] {
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(name);
        }
        bytes.extend_from_slice(&5u64.to_le_bytes());
        bytes.extend_from_slice(&6u64.to_le_bytes());
        let expected = vec![("exits".to_owned(), 5), ("pf_fixed".to_owned(), 6)];
        assert_eq!(parse(&bytes), Some(expected));
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None);
        assert_eq!(parse(&[0xff; 100]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn the_file_of_this_kernel_is_read() {
        let Some(vm) = super::super::tests::vm() else {
            return;
        };
        let vcpu = vm.create_vcpu(0).unwrap();
        let Some(statistics) = Statistics::open(&vcpu) else {
            println!("skipped: this KVM has no statistics descriptor");
            return;
        };
        statistics.add_counts(&mut BTreeMap::new()).unwrap();
    }
}
