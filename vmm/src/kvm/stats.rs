//! KVM's own counters of a vCPU (Linux 5.14 and later): exits that never reach us, such as those for CPUID, MSRs and
//! page faults. Read when asked, never on the guest's path.
//!
//! Layout (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD): header, then descriptors, then values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kvm_ioctls::VcpuFd;

/// Counters that tell why a guest left.
const SHOWN: &[&str] = &[
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
const HEADER: usize = 24;
/// A descriptor's words before its name.
const FIXED: usize = 16;
/// More than any kernel has; bounds what is read.
const MAX_BYTES: usize = 256 * 1024;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct Statistics(File);

impl Statistics {
    /// Opens those of `vcpu`; None on a kernel without them.
    #[must_use]
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        super::raw::statistics(vcpu).map(Self)
    }

    /// Adds the counters to `counts`, as `kvm <name>`.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn count(&self, counts: &mut BTreeMap<String, u64>) -> io::Result<()> {
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
            if SHOWN.contains(&name.as_str()) && value > 0 {
                let sum = counts.entry(format!("kvm {name}")).or_default();
                *sum = sum.saturating_add(value);
            }
        }
        Ok(())
    }
}

/// Each counter's name and first value.
fn parse(bytes: &[u8]) -> Option<Vec<(String, u64)>> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let size = |at: usize| usize::try_from(word(at)?).ok();
    let (name_size, count) = (size(4)?, size(8)?);
    let (descriptors, data) = (size(16)?, size(20)?);
    if bytes.len() < HEADER || count > MAX_BYTES / FIXED {
        return None;
    }
    let mut found = Vec::with_capacity(count);
    for index in 0..count {
        let at = descriptors.checked_add(index.checked_mul(name_size.checked_add(FIXED)?)?)?;
        let offset = data.checked_add(size(at.checked_add(8)?)?)?;
        let name = bytes.get(at.checked_add(FIXED)?..)?.get(..name_size)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let value = u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_file_is_read() {
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
    fn this_kernels_file_is_read() {
        let Some(vm) = super::super::tests::vm() else {
            return;
        };
        let vcpu = vm.vcpu(0).unwrap();
        let Some(statistics) = Statistics::open(&vcpu) else {
            println!("skipped: this KVM has no statistics descriptor");
            return;
        };
        statistics.count(&mut BTreeMap::new()).unwrap();
    }
}
