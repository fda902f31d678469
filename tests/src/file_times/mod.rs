//! How long operations on files take in a directory: many small files, a large one, random blocks, and fsync. A guest of
//! `nacre-bench --only files-vmm` runs the steps as /init (`guests/file_times.rs`), a container runs `nacre-files times`.
//! The clock is that of whoever runs them. Never judges a time.

mod operations;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::operations::{
    ALONE, DEPTH, EACH, LARGE_MIB, SYNCED, append_synced, find, random_read, random_read_32, random_write,
    random_write_32, read, remove, stat, status, untar, write,
};

/// Begins the line that has all times.
pub const MARK: &str = "file times:";

/// What a step's figure is.
#[derive(Debug, Clone, Copy)]
enum Unit {
    /// The time of the whole step.
    Milliseconds,
    /// So many MiB, by the step's time.
    MibPerSecond(u32),
    /// So many operations, by the step's time.
    PerSecond(u32),
}

/// Operations of one kind, whose time is taken as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Its name, stable.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    unit: Unit,
    /// A guest drops what it has cached before.
    is_cold: bool,
    run: fn(&Path) -> Result<()>,
}

/// The steps, in their order: each finds the files that the ones before have left.
pub const STEPS: [Step; 13] = [
    step("untar", "256 files of 1 KiB as tar makes them", untar),
    step("stat", "of each file, cached", stat),
    step("find", "names in 16 directories, not cached", find).cold(),
    step(
        "status",
        "stat of 256 files, names in 16 directories, not cached",
        status,
    )
    .cold(),
    step("status_again", "the same, cached", status),
    step("remove", "256 files and 16 directories", remove),
    step("write", "64 MiB in order, with one fsync", write).mib(LARGE_MIB),
    step("read", "64 MiB in order, cached on the host", read)
        .cold()
        .mib(LARGE_MIB),
    step("random_read", "256 blocks of 4 KiB, O_DIRECT", random_read).operations(ALONE),
    step(
        "random_read_32",
        "512 blocks of 4 KiB by 32 threads, O_DIRECT",
        random_read_32,
    )
    .operations(DEPTH * EACH),
    step("random_write", "256 blocks of 4 KiB, O_DIRECT", random_write).operations(ALONE),
    step(
        "random_write_32",
        "512 blocks of 4 KiB by 32 threads, O_DIRECT",
        random_write_32,
    )
    .operations(DEPTH * EACH),
    step(
        "fsync",
        "64 blocks of 4 KiB appended, fsync of each",
        append_synced,
    )
    .operations(SYNCED),
];

/// The time of each of [`STEPS`].
pub type Times = [Duration; STEPS.len()];

const fn step(name: &'static str, what: &'static str, run: fn(&Path) -> Result<()>) -> Step {
    Step {
        name,
        what,
        unit: Unit::Milliseconds,
        is_cold: false,
        run,
    }
}

impl Step {
    const fn cold(self) -> Self {
        Self {
            is_cold: true,
            ..self
        }
    }

    const fn mib(self, amount: u32) -> Self {
        Self {
            unit: Unit::MibPerSecond(amount),
            ..self
        }
    }

    const fn operations(self, amount: u32) -> Self {
        Self {
            unit: Unit::PerSecond(amount),
            ..self
        }
    }

    /// The unit of its figure.
    pub const fn unit(&self) -> &'static str {
        match self.unit {
            Unit::Milliseconds => "ms",
            Unit::MibPerSecond(_) => "MiB/s",
            Unit::PerSecond(_) => "/s",
        }
    }

    /// Whether its figure is a rate, so that more is better.
    pub const fn is_rate(&self) -> bool {
        !matches!(self.unit, Unit::Milliseconds)
    }

    /// Its figure, if it took `time`.
    pub fn figure(&self, time: Duration) -> f64 {
        match self.unit {
            Unit::Milliseconds => time.as_secs_f64() * 1e3,
            Unit::MibPerSecond(amount) | Unit::PerSecond(amount) => f64::from(amount) / time.as_secs_f64(),
        }
    }
}

/// Runs the steps in `directory`, which is empty. Before each, all that was written is synced, and `drop_caches` is called
/// if the step is to find nothing cached.
///
/// # Errors
/// If a call fails.
pub fn run(directory: &Path, drop_caches: impl Fn() -> Result<()>) -> Result<Times> {
    let mut times = Times::default();
    for (step, time) in STEPS.iter().zip(&mut times) {
        rustix::fs::sync();
        if step.is_cold {
            drop_caches()?;
        }
        let started = Instant::now();
        (step.run)(directory).with_context(|| step.name)?;
        *time = started.elapsed();
    }
    Ok(times)
}

/// `times` as a line, in nanoseconds.
pub fn line(times: &Times) -> String {
    let words = STEPS.iter().zip(times);
    let words = words.map(|(step, time)| format!(" {}={}", step.name, time.as_nanos()));
    MARK.to_owned() + &words.collect::<String>()
}

/// The times of a line of [`line()`]'s, which may have something else before.
///
/// # Errors
/// If they are not those of [`STEPS`].
pub fn parse(line: &str) -> Result<Times> {
    let (_, words) = line
        .split_once(MARK)
        .with_context(|| format!("no times in {line:?}"))?;
    let mut words = words.split_whitespace();
    let mut times = Times::default();
    for (step, time) in STEPS.iter().zip(&mut times) {
        let word = words
            .next()
            .with_context(|| format!("no {} in {line:?}", step.name))?;
        match word.split_once('=') {
            Some((name, nanoseconds)) if name == step.name => {
                *time = Duration::from_nanos(nanoseconds.parse().with_context(|| word.to_owned())?);
            }
            _ => bail!("{word:?} is not the time of {}", step.name),
        }
    }
    ensure!(
        words.next().is_none(),
        "more than {} times: {line:?}",
        STEPS.len()
    );
    Ok(times)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;

    #[test]
    fn the_steps_leave_a_large_file_and_a_log() {
        // Not in /tmp, which may be a tmpfs without O_DIRECT.
        let program = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let drops = Cell::new(0);
        let times = run(directory.path(), || {
            drops.set(drops.get() + 1);
            Ok(())
        });
        let times = times.unwrap();
        assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
        assert_eq!(drops.get(), 3);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["large", "log"]);
        let length = |name| fs::metadata(directory.path().join(name)).unwrap().len();
        assert_eq!((length("large"), length("log")), (64 << 20, 64 * 4096));
    }

    #[test]
    fn times_survive_a_console() {
        let mut times = Times::default();
        for (number, time) in (1..).zip(&mut times) {
            *time = Duration::from_micros(number);
        }
        let line = line(&times);
        assert!(line.starts_with("file times: untar=1000 stat=2000 "), "{line}");
        assert_eq!(parse(&format!("[    1.234567] {line}\r")).unwrap(), times);
        let (cut, _) = line.rsplit_once(' ').unwrap();
        for wrong in [
            "",
            "untar=1",
            cut,
            &line.replace("find", "found"),
            &format!("{line} more=1"),
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        // The kernel's limit of a message.
        let longest = super::line(&[Duration::from_secs(1000); STEPS.len()]);
        assert!(longest.len() < 900, "{}", longest.len());
    }

    #[test]
    fn a_figure_is_a_time_or_a_rate() {
        let figure = |name: &str| {
            let step = STEPS.iter().find(|step| step.name == name).unwrap();
            (
                step.figure(Duration::from_millis(500)).round(),
                step.unit(),
                step.is_rate(),
            )
        };
        assert_eq!(figure("untar"), (500.0, "ms", false));
        assert_eq!(figure("read"), (128.0, "MiB/s", true));
        assert_eq!(figure("random_write_32"), (1024.0, "/s", true));
    }
}
