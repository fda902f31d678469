//! Sizes: of the agent and the guest kernel as installed, of a VMM's own memory, of an idle pod.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::memory;

use crate::containers::{Running, id, nacre};
use crate::results::{Measure, Results};

const MIB: f64 = 1024.0 * 1024.0;
/// Loaded segments (ELF specification, program header).
const PT_LOAD: u32 = 1;

/// An optimised and stripped VMM is far smaller, an unoptimised one far larger.
const OPTIMISED_BYTES: u64 = 6 << 20;

/// Tells where times are about to be measured that mean nothing.
pub fn warn_of_unoptimised() -> Result<()> {
    let vmm = prefix()?.join("bin/nacre-vmm");
    let bytes = fs::metadata(&vmm)
        .with_context(|| format!("looking at {}", vmm.display()))?
        .len();
    if bytes > OPTIMISED_BYTES {
        eprintln!(
            "{} is {} MiB large, so not optimised: these times mean nothing; make without QUICK=1",
            vmm.display(),
            bytes >> 20
        );
    }
    Ok(())
}

/// Measures all of them.
pub fn measure(results: &mut Results) -> Result<()> {
    let share = prefix()?.join("share/nacre");
    let image = fs::read(share.join("initramfs.cpio")).context("reading the guest image")?;
    let agent = entry_size(&image, "init").context("the guest image")?;
    results.add(Measure::alone(
        "agent, stripped",
        "MiB",
        agent as f64 / MIB,
        "as it is in the guest image; wanted: at most 6 MB",
    ));
    let kernel = fs::read(share.join("vmlinux")).context("reading the guest kernel")?;
    let (loaded, in_memory) = loaded_bytes(&kernel).context("the guest kernel")?;
    results.add(Measure::alone(
        "vmlinux, loaded segments",
        "MiB",
        loaded as f64 / MIB,
        format!(
            "with what starts as zeros: {:.1} MiB; wanted: at most 15 MB",
            in_memory as f64 / MIB
        ),
    ));
    vmm_memory(results)?;
    idle_pod(results)
}

/// The installation that `nacre` in PATH is part of.
fn prefix() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let program = std::env::split_paths(&path)
        .map(|directory| directory.join("nacre"))
        .find(|file| file.exists());
    let program = fs::canonicalize(program.context("nacre is not in PATH; use tests/lab/run")?)?;
    Ok(program
        .parent()
        .and_then(Path::parent)
        .context("nacre has no prefix")?
        .to_owned())
}

/// Size of `name` in a newc archive (cpio(5)): fixed headers of hexadecimal fields, name and data padded to 4 bytes.
fn entry_size(archive: &[u8], name: &str) -> Result<usize> {
    let mut at = 0;
    loop {
        let header = archive.get(at..at + 110).context("ends without a trailer")?;
        ensure!(header.starts_with(b"070701"), "no newc header at {at}");
        let field = |index: usize| -> Result<usize> {
            let digits = std::str::from_utf8(&header[6 + index * 8..14 + index * 8])?;
            Ok(usize::from_str_radix(digits, 16)?)
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let found = archive
            .get(at + 110..at + 110 + name_size.saturating_sub(1))
            .context("a name is cut off")?;
        let found = String::from_utf8_lossy(found);
        if found.trim_start_matches("./").trim_start_matches('/') == name {
            return Ok(size);
        }
        ensure!(found != "TRAILER!!!", "has no {name}");
        at = (at + 110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
    }
}

/// Sums of p_filesz and p_memsz over the loaded segments of a 64-bit little-endian ELF file.
fn loaded_bytes(elf: &[u8]) -> Result<(u64, u64)> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "is no 64-bit ELF file");
    let number = |at: usize, bytes: usize| -> Result<u64> {
        let field = elf.get(at..at + bytes).context("is cut off")?;
        Ok(field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let table = usize::try_from(number(32, 8)?)?;
    let (size, count) = (usize::try_from(number(54, 2)?)?, usize::try_from(number(56, 2)?)?);
    let (mut in_file, mut in_memory) = (0, 0);
    for header in (0..count).map(|index| table + index * size) {
        if number(header, 4)? == u64::from(PT_LOAD) {
            in_file += number(header + 32, 8)?;
            in_memory += number(header + 40, 8)?;
        }
    }
    Ok((in_file, in_memory))
}

/// Private dirty memory of a VMM without its guest's, with two alive that both have read all of their file system.
fn vmm_memory(results: &mut Results) -> Result<()> {
    eprintln!("memory of two VMMs after find / in their guests");
    let script = "find / >/dev/null 2>&1; echo done; exec sleep 1000";
    let pods = [
        Running::start(Runtime::Nacre, &id("find", 1), script)?,
        Running::start(Runtime::Nacre, &id("find", 2), script)?,
    ];
    let mut most = 0;
    for pod in &pods {
        let pid = vmm_pid(pod.id())?;
        let memory = memory::of(pid)?;
        ensure!(
            memory.guests > 0,
            "the VMM {pid} has no mapping that is large enough for guest memory"
        );
        most = most.max(memory.own_kib);
    }
    for pod in pods {
        pod.end()?;
    }
    let note = "the larger of two, after find / in the guest; wanted: at most 6 MiB";
    results.add(Measure::alone(
        "nacre-vmm, private dirty without guest memory",
        "MiB",
        most as f64 / 1024.0,
        note,
    ));
    Ok(())
}

fn vmm_pid(id: &str) -> Result<u64> {
    let pods = nacre(&["ps"])?;
    let pod = pods
        .as_array()
        .and_then(|pods| pods.iter().find(|pod| pod["id"] == id));
    pod.and_then(|pod| pod["vmm_pid"].as_u64())
        .with_context(|| format!("nacre ps does not tell the VMM of {id}"))
}

/// What the host charges to the cgroup of a pod that does nothing.
fn idle_pod(results: &mut Results) -> Result<()> {
    let pod = Running::start(Runtime::Nacre, &id("idle", 1), "echo up; exec sleep 1000")?;
    let pods = nacre(&["ps"])?;
    let memory = pods
        .as_array()
        .and_then(|pods| pods.iter().find(|found| found["id"] == pod.id()))
        .map(|found| found["memory_bytes"].as_u64());
    pod.end()?;
    match memory.context("nacre ps does not list a running pod")? {
        Some(bytes) => {
            let note = "memory.current of its cgroup on the host: guest memory, VMM, kernel";
            results.add(Measure::alone(
                "idle busybox pod",
                "MiB",
                bytes as f64 / MIB,
                note,
            ));
        }
        None => eprintln!("idle busybox pod: not measured, the unified cgroup tree has no memory controller"),
    }
    Ok(())
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
                .contains("has no other")
        );
        assert!(entry_size(&archive[..100], "init").is_err());
    }

    #[test]
    fn sums_loaded_segments_of_this_program() {
        let program = fs::read("/proc/self/exe").unwrap();
        let (in_file, in_memory) = loaded_bytes(&program).unwrap();
        assert!(in_file > 100_000 && in_file < program.len() as u64, "{in_file}");
        assert!(in_memory >= in_file, "{in_memory}");
        assert!(loaded_bytes(b"MZ").is_err());
    }
}
