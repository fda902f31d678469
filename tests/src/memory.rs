//! The private memory of a Nacre process without guest memory, from /proc/PID/smaps. The end-to-end tests and
//! the benchmark call it.

use std::fs;

use anyhow::{Context as _, Result};

/// KiB. A mapping of at least this size counts as guest memory: a VMM's other mappings are far smaller, and
/// guests have at least this much.
const GUEST_KIB: u64 = 64 * 1024;

/// The private memory of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Memory {
    /// KiB of `Private_Dirty`, summed over all mappings that are not guest memory.
    pub own_kib: u64,
    /// Number of mappings that are guest memory.
    pub guests: u64,
    /// KiB of `Private_Dirty` of these.
    pub guests_kib: u64,
}

/// Reads the memory of process `pid`.
///
/// # Errors
/// If the process does not exist or its smaps can't be parsed.
pub fn of(pid: u64) -> Result<Memory> {
    let smaps =
        fs::read_to_string(format!("/proc/{pid}/smaps")).with_context(|| format!("smaps of {pid}"))?;
    parse(&smaps).with_context(|| format!("smaps of {pid}"))
}

/// KiB of the memory of process `pid` that is resident, guest memory included.
///
/// # Errors
/// If the process does not exist or its smaps_rollup can't be parsed.
pub fn resident_kib(pid: u32) -> Result<u64> {
    rollup_kib(pid.into(), "Rss")
}

/// KiB of the proportional set size of process `pid`, guest memory included: a page that N processes map counts as
/// 1/N of a page.
///
/// # Errors
/// If the process does not exist or its smaps_rollup can't be parsed.
pub fn proportional_kib(pid: u64) -> Result<u64> {
    rollup_kib(pid, "Pss")
}

fn rollup_kib(pid: u64, field: &str) -> Result<u64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    field_kib(&text, field).context(file)
}

/// The value of field `name` in the text of /proc/meminfo or of a process's smaps_rollup, KiB.
///
/// # Errors
/// If there is no such field.
pub fn field_kib(text: &str, name: &str) -> Result<u64> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let field = fields.find(|(key, _)| *key == name);
    kib(field.with_context(|| format!("no {name}"))?.1)
}

fn kib(value: &str) -> Result<u64> {
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

fn parse(smaps: &str) -> Result<Memory> {
    let mut memory = Memory {
        own_kib: 0,
        guests: 0,
        guests_kib: 0,
    };
    let mut in_guest = false;
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key {
            "Size" => {
                in_guest = kib(value)? >= GUEST_KIB;
                memory.guests += u64::from(in_guest);
            }
            "Private_Dirty" if in_guest => memory.guests_kib += kib(value)?,
            "Private_Dirty" => memory.own_kib += kib(value)?,
            _ => {}
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_resident_memory() {
        let allocated = std::hint::black_box(vec![1_u8; 32 << 20]);
        // Not compared with the value before: other tests, on other threads, free memory meanwhile.
        assert!(resident_kib(std::process::id()).unwrap() >= 32 << 10);
        assert!(proportional_kib(std::process::id().into()).unwrap() >= 32 << 10);
        drop(allocated);
        assert!(resident_kib(0).is_err());
    }

    #[test]
    fn guest_memory_is_not_counted() {
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
                guests: 1,
                guests_kib: 90_000,
            }
        );
        assert_eq!(parse(&mapping(132, 100)).unwrap().guests, 0);
    }
}
