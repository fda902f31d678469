//! kill -9 of the VMM while a container writes: what the container has synced is in the host's files, whether they
//! are shared, a volume, a disk, or a file system on a disk; and such a file system is consistent after its journal
//! is replayed. `nacre-files commits` writes (tests/src/commits.rs).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_tests::commits;
use nacre_tests::container_program::Program;
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::{Foreground, IMAGE, ctr, fresh_id, output};
use nacre_tests::installation::{Config, prefix};
use nacre_tests::loop_device::LoopDevice;
use tempfile::TempDir;

use crate::{Test, long, test};
use nacre_tests::leaks::{only_process, send_sigkill};

pub const TESTS: &[Test] = &[
    // Not core: it has a configuration of its own.
    test("kill -9 of the VMM: what was synced is there, 4 times", || {
        rounds(4)
    }),
    long("kill -9 of the VMM: what was synced is there, 200 times", || {
        rounds(200)
    }),
    long("kill -9 of the VMM: what was not synced is lost", unsynced),
];

/// Where the container makes its commits; the third place is the disk.
const PLACES: [&str; 2] = ["/commits", "/volume/commits"];
/// The directory in the container's root file system.
const ROOT_COMMITS: &str = "commits";
/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 20;
/// The VMM is killed at most so long after the first commit.
const LONGEST_RUN: Duration = Duration::from_millis(600);
/// In each round of this number the container is started again.
const RESTART_EVERY: u32 = 3;

/// Runs `count` rounds. In every second one the writable layer of the root file system is a disk, unless the
/// snapshotter has the whole of it on one.
fn rounds(count: u32) -> Result<()> {
    let program = Program::new("nacre-files")?;
    let mut commits = 0;
    for number in 0..count {
        let round = Round::new(&program, number)?;
        commits += round
            .run()
            .with_context(|| format!("round {number} of {count}"))?;
    }
    println!("        {count} kills, {commits} commits");
    Ok(())
}

/// Shows that the rounds would find a loss.
fn unsynced() -> Result<()> {
    let program = Program::new("nacre-files")?;
    let mut round = Round::new(&program, 0)?;
    round.flag = "--unsynced";
    let Err(error) = round.run() else {
        bail!("nothing was lost");
    };
    let text = format!("{error:#}");
    let is_loss = ["were reported", "has other content", "is not whole"]
        .iter()
        .any(|part| text.contains(part));
    if is_loss { Ok(()) } else { Err(error) }
}

/// One container, which is killed.
struct Round<'a> {
    number: u32,
    program: &'a Program,
    /// For `nacre-files commits`.
    flag: &'static str,
    /// Has the directory of the volume, and the disk's file.
    directory: TempDir,
    disk: LoopDevice,
    _config: Option<Config>,
}

impl<'a> Round<'a> {
    fn new(program: &'a Program, number: u32) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run")?;
        fs::create_dir(directory.path().join("volume"))?;
        let file = directory.path().join("disk");
        File::create_new(&file)?.set_len(DISK_BYTES)?;
        let template = prefix()?.join("share/nacre/writable-layer.ext4");
        let config = format!("writable_layer = {template:?}\n");
        Ok(Self {
            number,
            program,
            flag: "",
            disk: LoopDevice::new(&file)?,
            directory,
            _config: (number % 2 == 1).then(|| Config::with(&config)).transpose()?,
        })
    }

    /// Returns the number of commits that were reported.
    fn run(&self) -> Result<u64> {
        let id = fresh_id("crash");
        let mut running = self.start(&id)?;
        let mut printed = read_until(&mut running, self.moment())?;
        send_sigkill(only_process("nacre-vmm")?)?;
        let ended = running.wait_with_output()?;
        ensure!(ended.code == Some(137), "{ended:?}");
        printed.push_str(&ended.text());
        let reported = counts(&printed)?;
        let restarts = self.number.is_multiple_of(RESTART_EVERY);
        if restarts {
            let printed = ctr(["task", "start", &id])?.success()?;
            check(&reported, &counts(&printed)?).context("in the container, started again")?;
        }
        let found = self.on_host(&id, restarts)?;
        check(&reported, &found).context("on the host")?;
        ctr(["containers", "delete", &id])?.success()?;
        Ok(reported.iter().sum())
    }

    /// Starts the container, which makes commits, or counts those that it finds.
    fn start(&self, id: &str) -> Result<Foreground> {
        let volume = self.directory.path().join("volume");
        let volume = format!("type=bind,src={},dst=/volume,options=rbind:rw", volume.display());
        let places = [PLACES[0], PLACES[1], &self.disk.node].join(" ");
        let program = self.program.command().join(" ");
        let script = format!(
            "if [ -e {}/log ]; then {program} count {places}; else exec {program} commits {} {places}; fi",
            PLACES[0], self.flag
        );
        let (runtime, program) = (Runtime::Nacre.name(), self.program.mount());
        let arguments = [
            "run",
            "--runtime",
            runtime,
            "--mount",
            &program,
            "--mount",
            &volume,
            "--device",
            &self.disk.node,
            IMAGE,
            id,
            "sh",
            "-c",
            &script,
        ];
        Foreground::ctr(&arguments, id)
    }

    /// How long after the first commit the VMM is killed: another time in each round, the same in each run.
    fn moment(&self) -> Duration {
        let drawn = (u64::from(self.number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        LONGEST_RUN.mul_f64(f64::from(u32::try_from(drawn).unwrap_or_default()) / f64::from(u32::MAX))
    }

    /// How many commits the host finds at each place. The journal of a file system on a disk has been replayed if the
    /// container was started again.
    fn on_host(&self, id: &str, is_replayed: bool) -> Result<Vec<u64>> {
        let extracted = tempfile::tempdir_in("/run")?;
        let root = match Root::of(id)? {
            Root::Directory(upper) => upper.join(ROOT_COMMITS),
            Root::Image { image, path } => {
                check_file_system(&image, is_replayed)?;
                let dump = format!("rdump {path} {}", extracted.path().display());
                let mut debugfs = Command::new("debugfs");
                debugfs.args(["-R", &dump]).arg(&image);
                output(debugfs)?.success()?;
                extracted.path().join(ROOT_COMMITS)
            }
        };
        let volume = self.directory.path().join("volume").join(ROOT_COMMITS);
        // The file of the loop device has what the device has flushed.
        let disk = self.directory.path().join("disk");
        [root, volume, disk]
            .iter()
            .map(|place| commits::count(place))
            .collect()
    }
}

/// Reads what the container prints until `moment` after its first line.
fn read_until(running: &mut Foreground, moment: Duration) -> Result<String> {
    let mut text = running.line()? + "\n";
    let until = Instant::now() + moment;
    while running.readable(until) {
        text.push_str(&running.line()?);
        text.push('\n');
        if Instant::now() >= until {
            break;
        }
    }
    Ok(text)
}

/// The last count of commits that `text` has for each place. Its last line may have been cut.
fn counts(text: &str) -> Result<Vec<u64>> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut last = vec![0; PLACES.len() + 1];
    for line in whole.lines() {
        let numbers = line.split_once(' ').context(line.to_owned())?;
        let place: usize = numbers.0.parse().context(line.to_owned())?;
        *last.get_mut(place).context(line.to_owned())? = numbers.1.parse().context(line.to_owned())?;
    }
    Ok(last)
}

/// Checks that each place has the commits that were reported.
fn check(reported: &[u64], found: &[u64]) -> Result<()> {
    let is_lost = |(reported, found): (&u64, &u64)| found < reported;
    ensure!(
        !reported.iter().zip(found).any(is_lost),
        "{reported:?} commits were reported, {found:?} were found"
    );
    Ok(())
}

/// Where a container's root file system is on the host.
enum Root {
    /// In the upper directory of an overlay.
    Directory(PathBuf),
    /// On an ext4 image, where `path` has the commits.
    Image { image: PathBuf, path: &'static str },
}

impl Root {
    /// Asks containerd for the mounts of the snapshot of container `id`.
    fn of(id: &str) -> Result<Self> {
        let command = ctr(["snapshots", "mounts", "/target", id])?.success()?;
        let words: Vec<&str> = command.split_whitespace().collect();
        let ["mount", "-t", kind, source, _, "-o", options] = words[..] else {
            bail!("{command}");
        };
        if kind == "ext4" {
            return Ok(Self::Image {
                image: source.into(),
                path: "/commits",
            });
        }
        let upper = options
            .split(',')
            .find_map(|option| option.strip_prefix("upperdir="));
        let upper = Path::new(upper.with_context(|| command.clone())?);
        let image = upper.join(".nacre-writable-layer");
        Ok(match image.exists() {
            true => Self::Image {
                image,
                path: "/upper/commits",
            },
            false => Self::Directory(upper.to_owned()),
        })
    }
}

/// Checks that the file system of `image` is consistent, after its journal is replayed unless it has been.
fn check_file_system(image: &Path, is_replayed: bool) -> Result<()> {
    if !is_replayed {
        let mut replay = Command::new("e2fsck");
        replay.args(["-y", "-E", "journal_only"]).arg(image);
        output(replay)?.success().context("replaying the journal")?;
    }
    let mut fsck = Command::new("e2fsck");
    fsck.args(["-f", "-n"]).arg(image);
    output(fsck)?.success().context("the image after the kill")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_not_read() {
        assert_eq!(counts("0 1\n1 1\n2 1\n0 12\n1 1").unwrap(), [12, 1, 1]);
        assert_eq!(counts("").unwrap(), [0, 0, 0]);
        assert!(counts("7 1\n").is_err());
        assert!(counts("failed: x\n").is_err());
    }

    #[test]
    fn a_commit_that_was_reported_must_be_found() {
        assert!(check(&[3, 4], &[3, 5]).is_ok());
        assert!(check(&[3, 4], &[4, 3]).is_err());
    }
}
