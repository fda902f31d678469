//! What the files of the exerciser must contain, and the operations that it draws. Pure.

use std::fmt;
use std::ops::Range;

/// Bytes up to which a file may grow.
pub const MAX_SIZE: usize = 256 * 1024;
/// Bytes that one operation reads or writes at most; three of four are within a sixteenth of it.
pub const MAX_LENGTH: usize = 64 * 1024;

/// Pseudo-random numbers (SplitMix64): the same seed draws the same operations on every machine.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % bound.max(1) as u64).unwrap_or(0)
    }

    fn length(&mut self) -> usize {
        let bound = if self.below(4) == 0 {
            MAX_LENGTH
        } else {
            MAX_LENGTH / 16
        };
        1 + self.below(bound)
    }
}

/// Random bytes. A write takes a part of them at a random position, since drawing each byte would take longer
/// than the write.
#[derive(Debug)]
pub struct Pool(Vec<u8>);

impl Pool {
    /// Draws all bytes.
    pub fn new(random: &mut Random) -> Self {
        let words = MAX_SIZE / 8;
        Self((0..words).flat_map(|_| random.number().to_le_bytes()).collect())
    }

    /// The bytes that `action` writes, none if it is not a write.
    pub fn draw(&self, action: &Action, random: &mut Random) -> &[u8] {
        match *action {
            Action::Write { length, .. } | Action::MappedWrite { length, .. } | Action::Append { length } => {
                let start = random.below(self.0.len() - length + 1);
                &self.0[start..start + length]
            }
            Action::Read { .. }
            | Action::MappedRead { .. }
            | Action::Truncate { .. }
            | Action::PunchHole { .. }
            | Action::Allocate { .. }
            | Action::ZeroRange { .. }
            | Action::Copy { .. }
            | Action::Size
            | Action::Reopen
            | Action::Sync
            | Action::Rename => &[],
        }
    }
}

/// One operation on file number `file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The file that it reads or changes.
    pub file: usize,
    /// What it does there.
    pub action: Action,
}

/// What an operation does. All positions and lengths are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// pread(2) up to beyond the end of the file.
    Read { at: usize, length: usize },
    /// pwrite(2), also beyond the end of the file, which leaves a hole.
    Write { at: usize, length: usize },
    /// write(2) through a descriptor with O_APPEND.
    Append { length: usize },
    /// Reads the range through the file's shared mapping.
    MappedRead { at: usize, length: usize },
    /// Writes the range through the file's shared mapping, then calls msync(2) if `sync`.
    MappedWrite { at: usize, length: usize, sync: bool },
    /// ftruncate(2), in both directions.
    Truncate { size: usize },
    /// fallocate(2) with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE.
    PunchHole { at: usize, length: usize },
    /// fallocate(2) without flags.
    Allocate { at: usize, length: usize },
    /// fallocate(2) with FALLOC_FL_ZERO_RANGE.
    ZeroRange { at: usize, length: usize },
    /// copy_file_range(2) from the range of file number `from`.
    Copy {
        from: usize,
        source: usize,
        at: usize,
        length: usize,
    },
    /// fstat(2).
    Size,
    /// Opens and maps the file again, then closes and unmaps what was open.
    Reopen,
    /// fsync(2).
    Sync,
    /// Renames the file to another free name and back at its next turn.
    Rename,
}

impl Action {
    /// The action's name, for the counts of a report.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Append { .. } => "append",
            Self::MappedRead { .. } => "mapped read",
            Self::MappedWrite { .. } => "mapped write",
            Self::Truncate { .. } => "truncate",
            Self::PunchHole { .. } => "punch hole",
            Self::Allocate { .. } => "allocate",
            Self::ZeroRange { .. } => "zero range",
            Self::Copy { .. } => "copy",
            Self::Size => "size",
            Self::Reopen => "reopen",
            Self::Sync => "fsync",
            Self::Rename => "rename",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}: {:?}", self.file, self.action)
    }
}

/// The content of every file.
#[derive(Debug, Clone)]
pub struct Model {
    /// One entry for each file.
    pub files: Vec<Vec<u8>>,
}

impl Model {
    /// `count` empty files.
    pub fn new(count: usize) -> Self {
        Self {
            files: vec![Vec::new(); count],
        }
    }

    /// Draws the next operation, which is possible with the files as they are.
    pub fn draw(&self, random: &mut Random) -> Operation {
        let file = random.below(self.files.len());
        let size = self.files[file].len();
        // Per mille. Most operations are those that a cache answers, so that a million of them take less than
        // an hour where every other operation is a request to a server that takes milliseconds.
        let action = match random.below(1000) {
            320..580 if size > 0 => {
                let (at, length) = inside(random, size);
                Action::MappedRead { at, length }
            }
            580..880 if size > 0 => {
                let (at, length) = inside(random, size);
                let sync = random.below(64) == 0;
                Action::MappedWrite { at, length, sync }
            }
            880..930 => {
                let at = random.below(size + size / 8 + 1).min(MAX_SIZE - 1);
                let length = random.length().min(MAX_SIZE - at);
                Action::Write { at, length }
            }
            930..935 if size < MAX_SIZE => Action::Append {
                length: random.length().min(MAX_SIZE - size),
            },
            935..955 => Action::Size,
            955..967 => Action::Truncate {
                size: random.below(MAX_SIZE + 1),
            },
            967..974 => Self::draw_range(random, |at, length| Action::PunchHole { at, length }),
            974..977 => Self::draw_range(random, |at, length| Action::Allocate { at, length }),
            977..980 => Self::draw_range(random, |at, length| Action::ZeroRange { at, length }),
            980..988 => self.draw_copy(random, file),
            988..994 => Action::Reopen,
            994..997 => Action::Sync,
            997..1000 => Action::Rename,
            _ => Action::Read {
                at: random.below(size + size / 8 + 1),
                length: random.length(),
            },
        };
        Operation { file, action }
    }

    fn draw_range(random: &mut Random, action: fn(usize, usize) -> Action) -> Action {
        let at = random.below(MAX_SIZE);
        action(at, random.length().min(MAX_SIZE - at))
    }

    /// A copy whose ranges do not overlap, which copy_file_range(2) refuses; otherwise a check of the size.
    fn draw_copy(&self, random: &mut Random, file: usize) -> Action {
        let from = random.below(self.files.len());
        let available = self.files[from].len();
        if available == 0 {
            return Action::Size;
        }
        let (source, length) = inside(random, available);
        let at = random.below(MAX_SIZE);
        let length = length.min(MAX_SIZE - at);
        if from == file && source < at + length && at < source + length {
            return Action::Size;
        }
        Action::Copy {
            from,
            source,
            at,
            length,
        }
    }

    /// Changes the model as `operation` changes the files. `bytes` is what a write writes.
    pub fn apply(&mut self, operation: &Operation, bytes: &[u8]) {
        let mut copied = Vec::new();
        if let Action::Copy {
            from, source, length, ..
        } = operation.action
        {
            copied = self.files[from][source..source + length].to_vec();
        }
        let file = &mut self.files[operation.file];
        match operation.action {
            Action::Write { at, .. } | Action::MappedWrite { at, .. } => put(file, at, bytes),
            Action::Append { .. } => file.extend_from_slice(bytes),
            Action::Copy { at, .. } => put(file, at, &copied),
            Action::Truncate { size } => file.resize(size, 0),
            Action::PunchHole { at, length } => {
                let end = file.len().min(at + length);
                if at < end {
                    file[at..end].fill(0);
                }
            }
            Action::Allocate { at, length } => grow(file, at + length),
            Action::ZeroRange { at, length } => {
                grow(file, at + length);
                file[at..at + length].fill(0);
            }
            Action::Read { .. }
            | Action::MappedRead { .. }
            | Action::Size
            | Action::Reopen
            | Action::Sync
            | Action::Rename => {}
        }
    }

    /// The part of a file that a read of the range returns.
    pub fn expected(&self, file: usize, at: usize, length: usize) -> &[u8] {
        let size = self.files[file].len();
        let range: Range<usize> = at.min(size)..(at + length).min(size);
        &self.files[file][range]
    }
}

/// A range inside of `size` bytes, which is not 0.
fn inside(random: &mut Random, size: usize) -> (usize, usize) {
    let at = random.below(size);
    (at, random.length().min(size - at))
}

fn grow(file: &mut Vec<u8>, size: usize) {
    if size > file.len() {
        file.resize(size, 0);
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    grow(file, at + bytes.len());
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_possible_reproducible_and_of_every_kind() {
        let run = |seed| {
            let (mut model, mut random) = (Model::new(3), Random(seed));
            let pool = Pool::new(&mut random);
            let mut operations = Vec::new();
            for _ in 0..20_000 {
                let operation = model.draw(&mut random);
                model.apply(&operation, pool.draw(&operation.action, &mut random));
                assert!(model.files.iter().all(|file| file.len() <= MAX_SIZE));
                operations.push(operation);
            }
            (operations, model.files)
        };
        let (operations, files) = run(7);
        assert_eq!((&operations, &files), (&run(7).0, &run(7).1));
        assert_ne!(operations, run(8).0);
        let mut names: Vec<&str> = operations.iter().map(|one| one.action.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 14, "{names:?}");
    }

    #[test]
    fn the_model_does_what_the_system_calls_do() {
        let mut model = Model::new(2);
        let mut apply = |file, action, bytes: &[u8]| {
            model.apply(&Operation { file, action }, bytes);
            model.files[file].clone()
        };
        assert_eq!(apply(0, Action::Write { at: 2, length: 2 }, b"ab"), b"\0\0ab");
        assert_eq!(apply(0, Action::Append { length: 1 }, b"c"), b"\0\0abc");
        assert_eq!(
            apply(
                0,
                Action::MappedWrite {
                    at: 0,
                    length: 1,
                    sync: false
                },
                b"x"
            ),
            b"x\0abc"
        );
        assert_eq!(apply(0, Action::PunchHole { at: 3, length: 9 }, b""), b"x\0a\0\0");
        assert_eq!(apply(0, Action::Truncate { size: 3 }, b""), b"x\0a");
        assert_eq!(
            apply(
                1,
                Action::Copy {
                    from: 0,
                    source: 0,
                    at: 1,
                    length: 3
                },
                b""
            ),
            b"\0x\0a"
        );
        assert_eq!(apply(1, Action::Allocate { at: 4, length: 1 }, b""), b"\0x\0a\0");
        assert_eq!(
            apply(1, Action::ZeroRange { at: 3, length: 3 }, b""),
            b"\0x\0\0\0\0"
        );
        assert_eq!(model.expected(0, 2, 9), b"a");
        assert_eq!(model.expected(0, 9, 1), b"");
    }
}
