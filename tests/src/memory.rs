//! The private memory of a Nacre process without guest memory, from /proc/PID/smaps. The end-to-end tests and
//! the benchmark call it.

use std::fs;

use anyhow::{Context as _, Result};

/// Bytes. Adjacent mappings that can be read and written, and have at least this size together, are guest memory: a VMM's
/// other ones are far smaller, and guests have at least this much. That of a guest which continues from a template has
/// many, of the template's file and of anonymous memory.
const GUEST_BYTES: u64 = 64 << 20;

/// The private memory of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Memory {
    /// KiB of `Private_Dirty`, summed over all mappings that are not guest memory.
    pub own_kib: u64,
    /// Number of guest memories.
    pub guests: u64,
    /// KiB of `Private_Dirty` of their mappings.
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

/// Adjacent mappings of the same permissions.
#[derive(Default)]
struct Run<'a> {
    permissions: &'a str,
    start: u64,
    end: u64,
    dirty_kib: u64,
}

impl Run<'_> {
    fn add_to(&self, memory: &mut Memory) {
        if self.permissions.starts_with("rw") && self.end - self.start >= GUEST_BYTES {
            memory.guests += 1;
            memory.guests_kib += self.dirty_kib;
        } else {
            memory.own_kib += self.dirty_kib;
        }
    }
}

fn parse(smaps: &str) -> Result<Memory> {
    let mut memory = Memory {
        own_kib: 0,
        guests: 0,
        guests_kib: 0,
    };
    let mut run = Run::default();
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Private_Dirty:") {
            run.dirty_kib += kib(value)?;
            continue;
        }
        let Some((start, end, permissions)) = mapping(line) else {
            continue;
        };
        if start != run.end || permissions != run.permissions {
            run.add_to(&mut memory);
            run = Run {
                permissions,
                start,
                ..Run::default()
            };
        }
        run.end = end;
    }
    run.add_to(&mut memory);
    Ok(memory)
}

/// Start, end and permissions of a mapping, if `line` begins one (proc_pid_smaps(5)).
fn mapping(line: &str) -> Option<(u64, u64, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?, rest.split(' ').next()?))
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

    /// Mappings of so many KiB each, adjacent from `start` on, each with so much that is dirty.
    fn mappings(mut start: u64, permissions: &str, mappings: &[(u64, u64)]) -> String {
        let mut text = String::new();
        for (size, dirty) in mappings {
            let end = start + size * 1024;
            text += &format!("{start:x}-{end:x} {permissions} 00000000 00:21 7   /a/memory\n");
            text += &format!("Size: {size:10} kB\nRss: 1 kB\nPrivate_Dirty: {dirty:6} kB\n");
            start = end;
        }
        text
    }

    #[test]
    fn guest_memory_is_not_counted() {
        let smaps = mappings(0x1000, "rw-p", &[(132, 100)])
            + &mappings(0x7f00_0000_0000, "rw-p", &[(524_288, 90_000)])
            + &mappings(0x7f00_2000_0000, "r--p", &[(8, 4)]);
        let memory = Memory {
            own_kib: 104,
            guests: 1,
            guests_kib: 90_000,
        };
        assert_eq!(parse(&smaps).unwrap(), memory);
    }

    #[test]
    fn guest_memory_of_many_mappings_is_one() {
        let smaps = mappings(0x7f00_0000_0000, "rw-p", &[(4, 4), (2048, 0), (60, 8), (131_072, 100)])
            // The arena of an allocator, most of which is reserved.
            + &mappings(0x7f10_0000_0000, "rw-p", &[(132, 20)])
            + &mappings(0x7f10_0002_1000, "---p", &[(65_404, 0)]);
        let memory = Memory {
            own_kib: 20,
            guests: 1,
            guests_kib: 112,
        };
        assert_eq!(parse(&smaps).unwrap(), memory);
    }
}
