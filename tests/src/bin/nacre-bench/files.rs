//! Files in a container, beside runc: on the root file system, on a volume, and on a writable layer that is a disk
//! (docs/disks.md). In a lab with a snapshotter of images: on a root file system of that snapshotter, beside runc on the
//! same and beside runc on overlayfs. A script in the container times each kind of operation by the guest's clock.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::{IMAGE, Run, ctr, fresh_id};
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
    /// The root file system, under runc by overlayfs.
    Image,
}

impl Place {
    /// Those to measure. The lab names the snapshotter that `ctr` uses, if it is not the default.
    fn all() -> &'static [Self] {
        match std::env::var_os("CONTAINERD_SNAPSHOTTER") {
            None => &[Self::Rootfs, Self::Volume, Self::WritableLayer],
            Some(_) => &[Self::Rootfs, Self::Image],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Volume => "volume",
            Self::WritableLayer => "layer",
            Self::Image => "image",
        }
    }
}

/// The options of `ctr` for the snapshotter that most users have.
const OVERLAY: [&str; 2] = ["--snapshotter", "overlayfs"];

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
    for place in Place::all().iter().copied() {
        if let Place::Image = place {
            unpack_overlay()?;
        }
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
                unit: "ms".into(),
                nacre,
                peer: Some(runc),
                peer_name: Some("runc".into()),
                // The clock's resolution is 10 ms.
                ratio: Some(nacre.max(10.0) / runc.max(10.0)),
                note: format!("medians of {count} rounds"),
                ..Measure::default()
            });
        }
    }
    Ok(())
}

/// Unpacks the image for overlayfs: mounting it does, and unmounting it keeps the layers.
fn unpack_overlay() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let target = directory.path().to_string_lossy();
    let [flag, overlay] = OVERLAY;
    ctr(["images", "mount", flag, overlay, IMAGE, &target])?.success()?;
    ctr(["images", "unmount", "--rm", flag, overlay, &target])?.success()?;
    Ok(())
}

/// Runs the script in a new container.
fn run(place: Place, runtime: Runtime, directory: &Path) -> Result<Times> {
    let _config = match place {
        Place::WritableLayer => {
            let template = prefix()?.join("share/nacre/writable-layer.ext4");
            Some(Config::with(&format!("writable_layer = {template:?}\n"))?)
        }
        Place::Rootfs | Place::Volume | Place::Image => None,
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
        Place::Rootfs | Place::WritableLayer | Place::Image => "/root",
    };
    let mut flags = vec!["--mount", &script, "--mount", &mount];
    if let (Place::Image, Runtime::Runc) = (place, runtime) {
        flags.extend(OVERLAY);
    }
    let container = Run {
        flags: &flags,
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
