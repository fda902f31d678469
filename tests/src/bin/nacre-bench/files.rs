//! Files in a container, beside runc: on the root file system, on a volume, and on a writable layer that is a disk
//! (docs/disks.md). A script in the container times each kind of operation by the guest's clock.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::{Run, fresh_id};
use nacre_tests::installation::{Config, prefix};

use crate::results::{Measure, Results};
use crate::statistics::median;

/// The operations of [`SCRIPT`], in its order.
const OPERATIONS: [&str; 7] = [
    "make_200",
    "read_200",
    "untar_200",
    "remove_400",
    "write_800x4k",
    "write_64m",
    "read_64m",
];

/// Prints the start and the end of each operation as centiseconds since the boot.
const SCRIPT: &str = r#"
    cd "$1" && mkdir work && cd work || exit 1
    now() { IFS=' .' read -r seconds rest _ </proc/uptime; echo "$seconds$rest"; }
    timed() { now; eval "$1" || exit 1; now; }
    mkdir made unpacked
    timed 'i=0; while [ $i -lt 200 ]; do echo $i >made/$i; i=$((i+1)); done'
    timed 'cat made/* >/dev/null'
    tar -cf archive made
    timed 'tar -xf archive -C unpacked'
    timed 'rm -r made unpacked'
    timed 'dd if=/dev/zero of=small bs=4096 count=800 2>/dev/null'
    timed 'dd if=/dev/zero of=large bs=1M count=64 2>/dev/null'
    timed 'cat large >/dev/null'
"#;

/// Where a container's files are.
#[derive(Debug, Clone, Copy)]
enum Place {
    Rootfs,
    Volume,
    WritableLayer,
}

impl Place {
    const ALL: [Self; 3] = [Self::Rootfs, Self::Volume, Self::WritableLayer];

    fn name(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Volume => "volume",
            Self::WritableLayer => "layer",
        }
    }
}

/// Milliseconds of each of [`OPERATIONS`].
type Times = [f64; OPERATIONS.len()];

/// Measures `count` rounds of each place under each runtime, in turns, after one that warms up, and adds the rows
/// `files_PLACE_OPERATION`.
///
/// # Errors
/// If a container fails.
pub fn measure(count: usize, results: &mut Results) -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    fs::write(directory.path().join("script"), SCRIPT)?;
    for place in Place::ALL {
        let mut rounds: Vec<[Times; 2]> = Vec::with_capacity(count);
        for number in 0..=count {
            let mut times = [Times::default(); 2];
            for turn in 0..2 {
                let index = (number + turn) % 2;
                let runtime = [Runtime::Nacre, Runtime::Runc][index];
                times[index] = run(place, runtime, directory.path())
                    .with_context(|| format!("files on the {} under {}", place.name(), runtime.name()))?;
            }
            if number > 0 {
                eprintln!(
                    "files on the {} {number:2} of {count}: {times:?} ms",
                    place.name()
                );
                rounds.push(times);
            }
        }
        for (index, operation) in OPERATIONS.iter().enumerate() {
            let each =
                |runtime: usize| -> Vec<f64> { rounds.iter().map(|round| round[runtime][index]).collect() };
            let (nacre, runc) = (median(&each(0)), median(&each(1)));
            results.add(Measure {
                name: format!("files_{}_{operation}", place.name()),
                unit: "ms",
                nacre,
                peer: Some(runc),
                peer_name: Some("runc"),
                // The clock's resolution is 10 ms.
                ratio: Some(nacre.max(10.0) / runc.max(10.0)),
                note: format!("medians of {count} rounds"),
                ..Measure::default()
            });
        }
    }
    Ok(())
}

/// Runs the script in a new container.
fn run(place: Place, runtime: Runtime, directory: &Path) -> Result<Times> {
    let _config = match place {
        Place::WritableLayer => {
            let template = prefix()?.join("share/nacre/writable-layer.ext4");
            Some(Config::with(&format!("writable_layer = {template:?}\n"))?)
        }
        Place::Rootfs | Place::Volume => None,
    };
    let volume = tempfile::tempdir_in("/run")?;
    let script = format!(
        "type=bind,src={}/script,dst=/script,options=rbind:ro",
        directory.display()
    );
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        volume.path().display()
    );
    let work = match place {
        Place::Volume => "/volume",
        Place::Rootfs | Place::WritableLayer => "/root",
    };
    let container = Run {
        flags: &["--mount", &script, "--mount", &mount],
        command: &["sh", "/script", work],
        runtime,
        ..Run::default()
    };
    parse(&container.output(&fresh_id("files"))?.success()?)
}

/// The differences of the pairs of lines that the script prints.
fn parse(text: &str) -> Result<Times> {
    let stamps: Vec<f64> = text
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("a time")?;
    ensure!(
        stamps.len() == 2 * OPERATIONS.len(),
        "the script printed {text:?}"
    );
    let mut times = Times::default();
    for (time, pair) in times.iter_mut().zip(stamps.chunks_exact(2)) {
        *time = (pair[1] - pair[0]) * 10.0;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_differences_in_milliseconds() {
        let lines: Vec<String> = (0..OPERATIONS.len())
            .flat_map(|index| [12_300 + index, 12_305 + 2 * index])
            .map(|stamp| stamp.to_string())
            .collect();
        let times = parse(&lines.join("\n")).unwrap();
        assert!(
            (times[0] - 50.0).abs() < 1e-9 && (times[6] - 110.0).abs() < 1e-9,
            "{times:?}"
        );
        assert!(parse("1\n2\n").is_err());
        assert!(parse("x\n").is_err());
    }
}
