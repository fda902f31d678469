//! A guest that gets more memory while it runs and gives it back: the guest's kernel uses it, the devices do,
//! and the host has it back when the guest frees or unplugs it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::exits::Exits;
use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{self, Parameters};
use super::{Build, Guest, Options, Test, Workload, pause, test};
use crate::memory;

/// The tests.
pub const TESTS: &[Test] = &[
    test(
        "a guest grows from 512 MiB to 2560 and shrinks again",
        grows_and_shrinks,
    ),
    test("5 times 1 GiB more and less during I/O", changes_during_io),
];

/// Serves orders until the test closes the connection.
pub const WORKLOAD: Workload = Workload {
    name: "memory-plugs",
    run: serve,
};

/// Memory at boot, and what is plugged in besides, in MiB. Beyond three times the memory at boot, Linux makes
/// plugged memory its own (ZONE_NORMAL): only then vsock has buffers there.
const BOOT_MIB: &str = "512";
const PLUGGED_MIB: u64 = 2048;
/// How much the guest allocates, which the memory at boot has no space for.
const ALLOCATED_MIB: u64 = 1536;
/// How much more than before the host may use after the guest has freed or unplugged memory, in MiB: memory
/// that the guest's kernel keeps for itself.
const REMAINDER_MIB: u64 = 96;
/// How much the guest may keep that it should unplug, in MiB: its kernel's own memory can't be moved, and is in
/// a part of the blocks of 128 MiB that are not movable.
const KEPT_MIB: u64 = 128;
/// How long the guest's kernel may take to plug or unplug.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(30);
/// How long what it frees may take to return to the host.
const RETURN_DEADLINE: Duration = Duration::from_secs(5);
/// Order of the test: the guest answers with its sizes, as [`Sizes`] has them.
const REPORT: u8 = b'm';
/// Orders of the test, each answered by the order itself: the guest allocates and writes [`ALLOCATED_MIB`],
/// frees it, writes and reads files.
const ALLOCATE: u8 = b'a';
const FREE: u8 = b'f';
const FILES: u8 = b'i';
/// Order of the test: the guest finds the devices that were added.
const FIND: u8 = b'd';
/// Order of the test, followed by [`ECHO_BYTES`], which the guest returns.
const ECHO: u8 = b'e';
const ECHO_BYTES: usize = 1 << 20;
/// Size and number of the files.
const FILE_BYTES: usize = 4 << 20;
const FILE_COUNT: u8 = 4;

/// What the guest's kernel reports, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// MemTotal.
    total: u64,
    /// MemFree.
    free: u64,
    /// Memory that the kernel may use for itself above 4 GiB.
    normal: u64,
    /// Memory that can be unplugged.
    movable: u64,
}

impl Sizes {
    fn read() -> Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let zones = fs::read_to_string("/proc/zoneinfo")?;
        Ok(Self {
            total: memory::field_kib(&meminfo, "MemTotal")?,
            free: memory::field_kib(&meminfo, "MemFree")?,
            normal: in_zone(&zones, "Normal", "managed"),
            movable: in_zone(&zones, "Movable", "managed"),
        })
    }

    fn numbers(self) -> [u64; 4] {
        [self.total, self.free, self.normal, self.movable]
    }
}

/// The value of `key` in zone `name` of /proc/zoneinfo, in KiB; 0 if there is none.
fn in_zone(zones: &str, name: &str, key: &str) -> u64 {
    let mut zone = "";
    for line in zones.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words {
            ["Node", _, "zone", found] => zone = found,
            [found, pages] if zone == name && found == key => return pages.parse().unwrap_or(0) * 4,
            _ => {}
        }
    }
    0
}

/// A guest with the workload, and the conversation with it.
struct Grown {
    guest: Guest,
    stream: UnixStream,
}

impl Grown {
    fn boot(build: &Build) -> Result<Self> {
        let mut guest = build.boot(&Options {
            workload: WORKLOAD.name,
            arguments: &[
                "--memory-mib",
                BOOT_MIB,
                "--max-plugged-mib",
                "4096",
                "--commands",
            ],
            ..Options::default()
        })?;
        let stream = guest.connect()?;
        guest.attach_common()?;
        let mut grown = Self { guest, stream };
        grown.order(FIND)?;
        Ok(grown)
    }

    fn resident_mib(&self) -> Result<u64> {
        Ok(memory::resident_kib(self.guest.vmm_pid())? / 1024)
    }

    /// Makes the guest carry out `order` and waits until it has.
    fn order(&mut self, order: u8) -> Result<()> {
        let mut answer = [0];
        self.stream.write_all(&[order])?;
        self.stream.read_exact(&mut answer)?;
        ensure!(answer == [order], "the guest answered {answer:?}");
        Ok(())
    }

    fn sizes(&mut self) -> Result<Sizes> {
        let mut numbers = [0; 32];
        self.order(REPORT)?;
        self.stream.read_exact(&mut numbers)?;
        let mut numbers = numbers.chunks_exact(8).map(|number| {
            let number = number.try_into().unwrap_or_default();
            u64::from_le_bytes(number)
        });
        let mut next = || numbers.next().unwrap_or_default();
        Ok(Sizes {
            total: next(),
            free: next(),
            normal: next(),
            movable: next(),
        })
    }

    /// Asks for `mib` of plugged memory, waits until the guest has them, and until its kernel uses them:
    /// `is_done` of its MemTotal in KiB. Returns what it costs.
    fn plug(&mut self, mib: u64, is_done: impl Fn(u64) -> bool) -> Result<String> {
        let (started, before) = (Instant::now(), Exits::of(self.guest.vmm_pid())?);
        self.guest.command(&format!("plug-memory {mib}"))?;
        self.guest
            .wait_for(&format!("{mib} MiB are plugged in"), DEADLINE)?;
        let plugged = started.elapsed();
        let after = Exits::of(self.guest.vmm_pid())?;
        self.wait_for_total(is_done)?;
        let exits = before
            .zip(after)
            .map(|(before, after)| after.since(&before, 1).to_string());
        Ok(format!(
            "{} ms, {}",
            plugged.as_millis(),
            exits.unwrap_or_default()
        ))
    }

    /// Waits until `is_done` of MemTotal in KiB. Each look is a round trip to the guest.
    fn wait_for_total(&mut self, is_done: impl Fn(u64) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let sizes = self.sizes()?;
            if is_done(sizes.total) {
                return Ok(());
            }
            ensure!(
                started.elapsed() < FOLLOW_DEADLINE,
                "MemTotal does not follow: {sizes:?}"
            );
        }
    }

    /// Waits until the VMM uses at most `most` MiB, not longer than `deadline`; returns how long that took, and
    /// how much it uses.
    fn wait_for_return(&mut self, most: u64, deadline: Duration) -> Result<(Duration, u64)> {
        let started = Instant::now();
        loop {
            let resident = self.resident_mib()?;
            if resident <= most {
                return Ok((started.elapsed(), resident));
            }
            ensure!(
                started.elapsed() < deadline,
                "the VMM still uses {resident} MiB {deadline:?} later, not {most}"
            );
            // One round trip to the guest.
            self.sizes()?;
        }
    }

    fn echo(&mut self) -> Result<()> {
        let sent = pattern(0, ECHO_BYTES);
        self.stream.write_all(&[ECHO])?;
        let mut writer = self.stream.try_clone()?;
        let outgoing = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&outgoing));
        let mut returned = vec![0; ECHO_BYTES];
        self.stream.read_exact(&mut returned)?;
        let written = writing.join();
        written.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        ensure!(returned == sent, "the guest returned other bytes");
        Ok(())
    }
}

fn grows_and_shrinks(build: &Build) -> Result<()> {
    let mut grown = Grown::boot(build)?;
    let (before, resident) = (grown.sizes()?, grown.resident_mib()?);
    let plugged_kib = PLUGGED_MIB * 1024;
    let took = grown.plug(PLUGGED_MIB, |total| total >= before.total + plugged_kib)?;
    let after = grown.sizes()?;
    println!("        plugged {PLUGGED_MIB} MiB in {took}");
    println!("        KiB: {before:?}, then {after:?}");
    println!(
        "        MiB of the VMM: {resident}, then {}",
        grown.resident_mib()?
    );
    ensure!(after.normal > before.normal, "the kernel can't use it: {after:?}");
    ensure!(
        after.movable >= plugged_kib / 2,
        "it can't be unplugged: {after:?}"
    );

    let most = resident + REMAINDER_MIB;
    for _ in 0..2 {
        grown.order(ALLOCATE)?;
        let used = grown.resident_mib()?;
        ensure!(used >= resident + ALLOCATED_MIB, "the VMM uses only {used} MiB");
        grown.order(FREE)?;
        let (took, left) = grown.wait_for_return(most, RETURN_DEADLINE)?;
        println!(
            "        MiB of the VMM: {used} with {ALLOCATED_MIB}, {left} after {:.1} s",
            took.as_secs_f64()
        );
    }
    let started = Instant::now();
    grown.echo()?;
    let echoed = started.elapsed();
    grown.order(FILES)?;
    println!(
        "        returned 1 MiB in {} ms, wrote and read {FILE_COUNT} files in {} ms",
        echoed.as_millis(),
        (started.elapsed() - echoed).as_millis()
    );

    let total = before.total;
    let kept_kib = KEPT_MIB * 1024;
    grown.guest.command("plug-memory 0")?;
    grown.wait_for_total(|now| now <= total + kept_kib)?;
    grown.guest.command("memory")?;
    println!(
        "        {}: {:?}",
        grown.guest.wait_for("requested are plugged in", DEADLINE)?,
        grown.sizes()?
    );
    let (_, left) = grown.wait_for_return(most, RETURN_DEADLINE)?;
    println!("        MiB of the VMM: {left}");
    let took = grown.plug(PLUGGED_MIB, |now| now >= total + plugged_kib)?;
    println!("        plugged {PLUGGED_MIB} MiB again in {took}");
    let Grown { guest, stream } = grown;
    drop(stream);
    guest.finish(DEADLINE)?;
    Ok(())
}

fn changes_during_io(build: &Build) -> Result<()> {
    pause::during_io(build, &["--max-plugged-mib", "1024", "--commands"], |guest| {
        for _ in 0..5 {
            for mib in [1024, 0] {
                guest.command(&format!("plug-memory {mib}"))?;
                guest.wait_for(&format!("{mib} MiB are plugged in"), DEADLINE)?;
            }
        }
        Ok("plugged and unplugged 5 times".to_owned())
    })
}

fn serve(_: &Parameters) -> Result<Value> {
    let mut conversation = Conversation::accept()?;
    let stream = &mut conversation.stream;
    let mut allocated = Vec::new();
    let mut order = [0];
    while stream.read(&mut order)? == 1 {
        match order {
            [REPORT | ECHO] => {}
            [ALLOCATE] => allocated = vec![1_u8; usize::try_from(ALLOCATED_MIB)? << 20],
            [FREE] => allocated = Vec::new(),
            [FILES] => write_and_read_files()?,
            [FIND] => workload::scan_pci_bus()?,
            _ => bail!("there is no order {order:?}"),
        }
        std::hint::black_box(&allocated);
        match order {
            [ECHO] => {
                let mut bytes = vec![0; ECHO_BYTES];
                stream.read_exact(&mut bytes)?;
                stream.write_all(&bytes)?;
            }
            _ => stream.write_all(&order)?,
        }
        if order == [REPORT] {
            for number in Sizes::read()?.numbers() {
                stream.write_all(&number.to_le_bytes())?;
            }
        }
    }
    Ok(json!({}))
}

/// Writes files to the host, drops them from the page cache, and reads them back.
fn write_and_read_files() -> Result<()> {
    for number in 0..FILE_COUNT {
        let path = Path::new(workload::SHARED).join(format!("plugged-{number}"));
        let written = pattern(number.into(), FILE_BYTES);
        fs::write(&path, &written)?;
        let file = fs::File::open(&path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        ensure!(fs::read(&path)? == written, "{} has changed", path.display());
    }
    Ok(())
}

/// `length` bytes that differ between pages and between seeds; a multiple of [`pause::FILE_BYTES`].
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let numbers = (0..length / pause::FILE_BYTES).map(|index| seed * 7919 + index as u64);
    let parts: Vec<_> = numbers
        .map(|number| pause::content(number, pause::FILE_BYTES))
        .collect();
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_told_apart() {
        let zones = "Node 0, zone   Normal\n  pages free     3\n        managed  5\n\
                     Node 0, zone  Movable\n        managed  7\n";
        assert_eq!(in_zone(zones, "Normal", "managed"), 20);
        assert_eq!(in_zone(zones, "Movable", "managed"), 28);
        assert_eq!(in_zone(zones, "DMA", "managed"), 0);
    }
}
