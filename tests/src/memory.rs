//! What a process of Nacre's has in memory for itself.

use std::fs;

use anyhow::{Context as _, Result};

/// A mapping at least this large is guest memory: no other of a VMM comes near, and no guest has less.
const GUEST_KIB: u64 = 64 * 1024;

/// A process's memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Memory {
    /// KiB of `Private_Dirty` over all mappings that are no guest memory.
    pub own_kib: u64,
    /// How many mappings are guest memory.
    pub guests: u64,
}

/// The memory of process `pid`.
///
/// # Errors
/// Where there is no such process.
pub fn of(pid: u64) -> Result<Memory> {
    let smaps =
        fs::read_to_string(format!("/proc/{pid}/smaps")).with_context(|| format!("smaps of {pid}"))?;
    parse(&smaps).with_context(|| format!("smaps of {pid}"))
}

fn parse(smaps: &str) -> Result<Memory> {
    let mut memory = Memory {
        own_kib: 0,
        guests: 0,
    };
    let mut in_guest = false;
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let kib = || -> Result<u64> { Ok(value.trim().trim_end_matches(" kB").parse()?) };
        match key {
            "Size" => {
                in_guest = kib()? >= GUEST_KIB;
                memory.guests += u64::from(in_guest);
            }
            "Private_Dirty" if !in_guest => memory.own_kib += kib()?,
            _ => {}
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let mapping = |size: u64, dirty: u64| {
            format!(
                "7f00-7f01 rw-p 00000000 00:00 0 \nSize: {size:10} kB\nRss: 1 kB\nPrivate_Dirty: {dirty:6} kB\n"
            )
        };
        let smaps = mapping(132, 100) + &mapping(524_288, 90_000) + &mapping(8, 4);
        assert_eq!(
            parse(&smaps).unwrap(),
            Memory {
                own_kib: 104,
                guests: 1
            }
        );
        assert_eq!(parse(&mapping(132, 100)).unwrap().guests, 0);
    }
}
