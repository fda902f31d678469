//! Sizes of the agent and of the guest kernel of an installed build, read from its files.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::elf;

use crate::results::Results;
use crate::runtimes::{Build, MeasuredRuntimes};

const MIB: f64 = 1024.0 * 1024.0;
/// An optimised and stripped nacre-vmm is far smaller, an unoptimised one far larger. Bytes.
const OPTIMISED_BYTES: u64 = 6 << 20;

/// Prints a warning for each build whose times would mean nothing.
pub fn warn_if_unoptimised(runtimes: &MeasuredRuntimes) -> Result<()> {
    for build in runtimes.builds() {
        let vmm = build.prefix.join("bin/nacre-vmm");
        let bytes = fs::metadata(&vmm)
            .with_context(|| format!("looking at {}", vmm.display()))?
            .len();
        if bytes > OPTIMISED_BYTES {
            eprintln!(
                "{} has {} MiB, so it is not optimised and its times mean nothing; run make without QUICK=1",
                vmm.display(),
                bytes >> 20
            );
        }
    }
    Ok(())
}

/// Adds both sizes.
pub fn measure(runtimes: &MeasuredRuntimes, results: &mut Results) -> Result<()> {
    let note = "stripped, as in the guest image; wanted: at most 6 MB";
    results.add_each(runtimes, ("agent_size", "MiB", note), |build| {
        let image = read(build, "initramfs.cpio")?;
        let bytes = entry_size(&image, "init").context("the guest image")?;
        Ok(Some(bytes as f64 / MIB))
    })?;
    let note = "loaded segments of vmlinux, bytes from the file; wanted: at most 15 MB";
    results.add_each(runtimes, ("kernel_size", "MiB", note), |build| {
        Ok(Some(kernel_bytes(build)?.0 as f64 / MIB))
    })?;
    let note = "loaded segments of vmlinux, with the memory that starts as zeros";
    results.add_each(runtimes, ("kernel_memory", "MiB", note), |build| {
        Ok(Some(kernel_bytes(build)?.1 as f64 / MIB))
    })
}

fn read(build: &Build, name: &str) -> Result<Vec<u8>> {
    let file = build.prefix.join("share/nacre").join(name);
    fs::read(&file).with_context(|| format!("reading {}", file.display()))
}

/// Bytes of the kernel's loaded segments, in the file and in memory.
fn kernel_bytes(build: &Build) -> Result<(u64, u64)> {
    let segments = elf::segments(&read(build, "vmlinux")?).context("the guest kernel")?;
    let sum = |pick: fn(&elf::Segment) -> u64| segments.iter().map(pick).sum();
    Ok((sum(|segment| segment.in_file), sum(|segment| segment.in_memory)))
}

/// Size of `name` in a newc archive (cpio(5)): fixed headers of hexadecimal fields, name and data padded to 4
/// bytes.
fn entry_size(archive: &[u8], name: &str) -> Result<usize> {
    let mut at = 0;
    loop {
        let header = archive.get(at..at + 110).context("ends without a trailer")?;
        ensure!(header.starts_with(b"070701"), "no newc header at byte {at}");
        let field = |index: usize| -> Result<usize> {
            let digits = std::str::from_utf8(&header[6 + index * 8..14 + index * 8])?;
            Ok(usize::from_str_radix(digits, 16)?)
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let found = archive
            .get(at + 110..at + 110 + name_size.saturating_sub(1))
            .context("an entry's name is truncated")?;
        let found = String::from_utf8_lossy(found);
        if found.trim_start_matches("./").trim_start_matches('/') == name {
            return Ok(size);
        }
        ensure!(found != "TRAILER!!!", "has no entry {name}");
        at = (at + 110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut fields = [0; 13];
        (fields[6], fields[11]) = (data.len(), name.len() + 1);
        let mut out = b"070701".to_vec();
        out.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08x}").into_bytes()),
        );
        out.extend(name.bytes().chain([0]));
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn finds_an_entry_of_an_archive() {
        let archive = [
            entry("dev", b""),
            entry("init", b"seven b"),
            entry("TRAILER!!!", b""),
        ]
        .concat();
        assert_eq!(entry_size(&archive, "init").unwrap(), 7);
        assert!(
            entry_size(&archive, "other")
                .unwrap_err()
                .to_string()
                .contains("has no entry other")
        );
        assert!(entry_size(&archive[..100], "init").is_err());
    }
}
