//! The exerciser: random operations on a few files, each compared with a model in memory. Run by `nacre-files
//! exercise` in a container. The same seed makes the same operations.

mod model;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use rustix::io::Errno;

use super::mapping::{Access, Mapping, Sharing};
pub use model::Random;
use model::{Action, MAX_SIZE, Model, Operation, Pool};

/// Operations that a failure prints.
const HISTORY: usize = 24;
/// All files are read and compared after so many operations.
const CHECK_EVERY: u64 = 2_000;

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The directory of the files.
    pub directory: PathBuf,
    /// Draws the operations.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many operations to make.
    #[arg(long, default_value_t = 20_000)]
    pub operations: u64,
    /// On how many files.
    #[arg(long, default_value_t = 3)]
    pub files: usize,
}

/// Makes the operations and returns a report of three parts: the counts, the actions that the file system
/// does not have, and a checksum of each file. Calls `progress` with the number of operations after each
/// check.
///
/// # Errors
/// If an operation fails or a file has other content than the model; the error has the seed and the last
/// operations.
pub fn run(options: &Options, mut progress: impl FnMut(u64)) -> Result<String> {
    ensure!((1..=64).contains(&options.files), "expected 1 to 64 files");
    let mut exerciser = Exerciser::new(options)?;
    let mut random = Random(options.seed);
    let pool = Pool::new(&mut random);
    let mut history = VecDeque::new();
    for number in 1..=options.operations {
        let operation = exerciser.model.draw(&mut random);
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(format!("{number} {operation}"));
        let mut outcome = exerciser.step(&operation, pool.draw(&operation.action, &mut random));
        if outcome.is_ok() && (number % CHECK_EVERY == 0 || number == options.operations) {
            outcome = exerciser.check_all();
            progress(number);
        }
        outcome.with_context(|| {
            let last = history.make_contiguous().join("\n  ");
            format!(
                "operation {number} of seed {}; the last were\n  {last}\n",
                options.seed
            )
        })?;
    }
    Ok(exerciser.report(options))
}

/// A file, its descriptors, and a mapping of all bytes that it may have.
struct Opened {
    path: PathBuf,
    plain: File,
    append: File,
    mapping: Mapping,
}

impl Opened {
    fn open(path: PathBuf) -> Result<Self> {
        let context = || path.display().to_string();
        let plain = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(context)?;
        let append = File::options().append(true).open(&path).with_context(context)?;
        let mapping = Mapping::new(&plain, 0, MAX_SIZE, Sharing::Shared, Access::Write)?;
        Ok(Self {
            path,
            plain,
            append,
            mapping,
        })
    }
}

struct Exerciser {
    model: Model,
    files: Vec<Opened>,
    counts: BTreeMap<&'static str, u64>,
    /// Actions that the file system refused with EOPNOTSUPP, which must be all or none of a kind.
    refused: BTreeMap<&'static str, u64>,
}

impl Exerciser {
    fn new(options: &Options) -> Result<Self> {
        let files = (0..options.files).map(|number| {
            let path = options.directory.join(format!("file-{number}"));
            File::create_new(&path).with_context(|| path.display().to_string())?;
            Opened::open(path)
        });
        Ok(Self {
            model: Model::new(options.files),
            files: files.collect::<Result<_>>()?,
            counts: BTreeMap::new(),
            refused: BTreeMap::new(),
        })
    }

    /// Makes the operation in the file and in the model, and compares what it read.
    fn step(&mut self, operation: &Operation, bytes: &[u8]) -> Result<()> {
        let name = operation.action.name();
        *self.counts.entry(name).or_default() += 1;
        match self.make(operation, bytes) {
            Err(error) if error.downcast_ref() == Some(&Errno::OPNOTSUPP) => {
                *self.refused.entry(name).or_default() += 1;
                ensure!(
                    self.refused[name] == self.counts[name],
                    "{name}: EOPNOTSUPP, and it worked before"
                );
            }
            outcome => {
                outcome?;
                self.model.apply(operation, bytes);
            }
        }
        Ok(())
    }

    fn make(&mut self, operation: &Operation, bytes: &[u8]) -> Result<()> {
        let number = operation.file;
        match operation.action {
            Action::Read { at, length } => self.read(number, at, length),
            Action::Write { at, .. } => Ok(self.files[number].plain.write_all_at(bytes, at as u64)?),
            Action::Append { .. } => {
                let written = rustix::io::write(&self.files[number].append, bytes)?;
                ensure!(written == bytes.len(), "appended {written} bytes");
                Ok(())
            }
            Action::MappedRead { at, length } => self.mapped_read(number, at, length),
            Action::MappedWrite { at, sync, .. } => self.mapped_write(number, at, bytes, sync),
            Action::Truncate { size } => Ok(self.files[number].plain.set_len(size as u64)?),
            Action::PunchHole { at, length } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.allocate(number, flags, at, length)
            }
            Action::Allocate { at, length } => self.allocate(number, FallocateFlags::empty(), at, length),
            Action::ZeroRange { at, length } => self.allocate(number, FallocateFlags::ZERO_RANGE, at, length),
            Action::Copy {
                from,
                source,
                at,
                length,
            } => self.copy((from, source), (number, at), length),
            Action::Size => self.check_size(number),
            Action::Reopen => {
                self.files[number] = Opened::open(self.files[number].path.clone())?;
                Ok(())
            }
            Action::Sync => Ok(self.files[number].plain.sync_all()?),
            Action::Rename => {
                let old = &mut self.files[number].path;
                let new = match old.extension() {
                    None => old.with_extension("renamed"),
                    Some(_) => old.with_extension(""),
                };
                fs::rename(&old, &new)?;
                *old = new;
                Ok(())
            }
        }
    }

    fn read(&self, number: usize, at: usize, length: usize) -> Result<()> {
        let mut found = vec![0; length];
        let mut read = 0;
        while read < length {
            match self.files[number]
                .plain
                .read_at(&mut found[read..], (at + read) as u64)?
            {
                0 => break,
                more => read += more,
            }
        }
        compare(&found[..read], self.model.expected(number, at, length), at)
    }

    fn mapped_read(&self, number: usize, at: usize, length: usize) -> Result<()> {
        let mut found = vec![0; length];
        self.files[number].mapping.read(at, &mut found);
        compare(&found, self.model.expected(number, at, length), at)
    }

    fn mapped_write(&self, number: usize, at: usize, bytes: &[u8], sync: bool) -> Result<()> {
        let mapping = &self.files[number].mapping;
        mapping.write(at, bytes);
        if sync {
            mapping.sync()?;
        }
        Ok(())
    }

    fn allocate(&self, number: usize, flags: FallocateFlags, at: usize, length: usize) -> Result<()> {
        Ok(fallocate(
            &self.files[number].plain,
            flags,
            at as u64,
            length as u64,
        )?)
    }

    fn copy(&self, from: (usize, usize), to: (usize, usize), length: usize) -> Result<()> {
        let (mut source, mut target) = (from.1 as u64, to.1 as u64);
        let mut left = length;
        while left > 0 {
            let copied = copy_file_range(
                &self.files[from.0].plain,
                Some(&mut source),
                &self.files[to.0].plain,
                Some(&mut target),
                left,
            )?;
            ensure!(copied > 0 && copied <= left, "copied {copied} of {left} bytes");
            left -= copied;
        }
        Ok(())
    }

    fn check_size(&self, number: usize) -> Result<()> {
        let found = self.files[number].plain.metadata()?.len();
        let expected = self.model.files[number].len() as u64;
        ensure!(found == expected, "file {number}: size {found}, not {expected}");
        Ok(())
    }

    fn check_all(&self) -> Result<()> {
        for (number, content) in self.model.files.iter().enumerate() {
            self.check_size(number)?;
            self.read(number, 0, content.len() + 1)
                .with_context(|| format!("file {number}"))?;
        }
        Ok(())
    }

    fn report(&self, options: &Options) -> String {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let refused: Vec<&str> = self.refused.keys().copied().collect();
        let sums = self
            .model
            .files
            .iter()
            .map(|content| format!("{:016x}", checksum(content)));
        format!(
            "seed {}, {} operations: {}\nnot supported: {}\n{SUMS}{}\n",
            options.seed,
            options.operations,
            counts.join(", "),
            if refused.is_empty() {
                "none".to_owned()
            } else {
                refused.join(", ")
            },
            sums.collect::<Vec<_>>().join(" ")
        )
    }
}

/// What the report's line with the checksums begins with.
pub const SUMS: &str = "checksums: ";

/// FNV-1a of 64 bits.
pub fn checksum(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The checksums of the files that [`run`] left in `directory`, in the form of its report.
///
/// # Errors
/// If a file can't be read.
pub fn checksums(directory: &Path, files: usize) -> Result<String> {
    let mut sums = Vec::new();
    for number in 0..files {
        let name = directory.join(format!("file-{number}"));
        let content = fs::read(&name).or_else(|_| fs::read(name.with_extension("renamed")))?;
        sums.push(format!("{:016x}", checksum(&content)));
    }
    Ok(sums.join(" "))
}

fn compare(found: &[u8], expected: &[u8], at: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    if found.len() != expected.len() {
        bail!("read {} bytes at {at}, not {}", found.len(), expected.len());
    }
    let wrong: Vec<usize> = (0..found.len())
        .filter(|index| found[*index] != expected[*index])
        .collect();
    let (first, last) = (wrong[0], wrong[wrong.len() - 1]);
    let end = (first + 16).min(found.len());
    bail!(
        "{} wrong bytes between {} and {}: {:02x?}, not {:02x?}",
        wrong.len(),
        at + first,
        at + last,
        &found[first..end],
        &expected[first..end]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_on_this_machine_agree_with_the_model_and_their_files_remain() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            directory: directory.path().to_owned(),
            seed: 3,
            operations: 4_000,
            files: 2,
        };
        let mut checks = 0;
        let report = run(&options, |_| checks += 1).unwrap();
        assert_eq!(checks, 2);
        let sums = checksums(directory.path(), 2).unwrap();
        assert!(report.contains(&format!("{SUMS}{sums}\n")), "{report}");
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut exerciser = Exerciser::new(&Options {
            directory: directory.path().to_owned(),
            seed: 5,
            operations: 1,
            files: 1,
        })
        .unwrap();
        let write = Operation {
            file: 0,
            action: Action::Write { at: 10, length: 3 },
        };
        exerciser.step(&write, b"abc").unwrap();
        exerciser.check_all().unwrap();
        exerciser.files[0].plain.write_all_at(b"x", 11).unwrap();
        let error = format!("{:#}", exerciser.check_all().unwrap_err());
        assert_eq!(
            error,
            "file 0: 1 wrong bytes between 11 and 11: [78, 63], not [62, 63]"
        );
        exerciser.files[0].plain.set_len(12).unwrap();
        let error = format!("{:#}", exerciser.check_all().unwrap_err());
        assert_eq!(error, "file 0: size 12, not 13");
    }

    #[test]
    fn a_failure_has_the_seed_and_the_last_operations() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            directory: directory.path().to_owned(),
            seed: 5,
            operations: 4_000,
            files: 1,
        };
        // The next rename of the file or its next opening fails.
        let remove = |_| fs::remove_dir_all(directory.path()).unwrap();
        let error = format!("{:#}", run(&options, remove).unwrap_err());
        assert!(error.contains("of seed 5; the last were\n  "), "{error}");
        assert!(error.contains("file 0: Re"), "{error}");
    }
}
