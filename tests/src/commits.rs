//! Commits: records that a program writes and syncs, one after the other, so that whoever sees a commit reported
//! knows what must be found later. `nacre-files commits` makes them in a container, whose VMM a test kills; the test
//! then counts what is found. Each record is made from its number alone.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Commits of one run: the writer stops after them, if nothing has killed it.
pub const MAX_COMMITS: u64 = 30_000;

/// The name of the log in a directory with commits.
const LOG: &str = "log";

/// Bytes of a device that one commit takes.
const SLOT: u64 = 8192;

/// The content of commit `number`: its number, and bytes that depend on it. The length differs, so that records
/// begin and end within pages.
fn record(number: u64) -> Vec<u8> {
    let length = 700 * (number % 7 + 1);
    let low = number.wrapping_mul(31);
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((8..length).map(|index| low.wrapping_add(index).to_le_bytes()[0]));
    bytes
}

/// How a commit is made durable in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Appended to the log, which is then synced.
    Fsync,
    /// The same without the times.
    Fdatasync,
    /// Appended by a descriptor that has O_DSYNC.
    Dsync,
    /// A file of its own: written, synced and renamed, and then its directory is synced.
    Rename,
}

impl How {
    const fn of(number: u64) -> Self {
        match number % 4 {
            0 => Self::Fsync,
            1 => Self::Fdatasync,
            2 => Self::Dsync,
            _ => Self::Rename,
        }
    }
}

fn file_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("file-{number}"))
}

/// Makes commits at a place.
pub struct Writer {
    place: Place,
    /// Whether what is written is synced, without which a commit is not durable.
    is_synced: bool,
}

enum Place {
    /// A directory, with the open log.
    Directory { path: PathBuf, log: File },
    /// A block device without a file system.
    Device(File),
}

impl Writer {
    /// Starts with commit 0 at `path`: an empty directory, which is made if it does not exist, or a device. Without
    /// `is_synced`, commits are only written.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn new(path: &Path, is_synced: bool) -> Result<Self> {
        if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
            let place = Place::Device(File::options().write(true).open(path)?);
            return Ok(Self { place, is_synced });
        }
        fs::create_dir_all(path)?;
        let log = File::options()
            .append(true)
            .create_new(true)
            .open(path.join(LOG))?;
        log.sync_all()?;
        // The directory itself must be found, too.
        let parent = path.parent().context("a directory without a parent")?;
        for directory in [path, parent] {
            File::open(directory)?.sync_all()?;
        }
        let path = path.to_owned();
        let place = Place::Directory { path, log };
        Ok(Self { place, is_synced })
    }

    /// Makes commit `number`, which is the next one. It is durable when this returns.
    ///
    /// # Errors
    /// If a call fails.
    pub fn commit(&mut self, number: u64) -> Result<()> {
        let record = record(number);
        let sync = |file: &File, how: fn(&File) -> io::Result<()>| match self.is_synced {
            true => how(file),
            false => Ok(()),
        };
        match &mut self.place {
            Place::Device(device) => {
                device.write_all_at(&record, number * SLOT)?;
                sync(device, File::sync_data)?;
            }
            Place::Directory { path, log } => match How::of(number) {
                How::Fsync => {
                    log.write_all(&record)?;
                    sync(log, File::sync_all)?;
                }
                How::Fdatasync => {
                    log.write_all(&record)?;
                    sync(log, File::sync_data)?;
                }
                How::Dsync => {
                    let flags = if self.is_synced { libc::O_DSYNC } else { 0 };
                    let log = path.join(LOG);
                    let mut log = File::options().append(true).custom_flags(flags).open(log)?;
                    log.write_all(&record)?;
                }
                How::Rename => {
                    let (new, file) = (path.join("new"), file_of(path, number));
                    let mut written = File::create(&new)?;
                    written.write_all(&record)?;
                    sync(&written, File::sync_all)?;
                    fs::rename(new, file)?;
                    sync(&File::open(path)?, File::sync_all)?;
                }
            },
        }
        Ok(())
    }
}

/// How many commits are whole in `path`, counted from 0 up to the first that is not: a directory, or a file with
/// the content of a device.
///
/// # Errors
/// If a file can't be read, or a commit has other content than it was written with, although a later one is whole.
pub fn count(path: &Path) -> Result<u64> {
    if path.is_dir() {
        return count_in_directory(path);
    }
    let device = File::open(path)?;
    let is_whole = |number: u64| -> Result<bool> {
        let expected = record(number);
        let mut found = vec![0; expected.len()];
        match device.read_exact_at(&mut found, number * SLOT) {
            Ok(()) => Ok(found == expected),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error.into()),
        }
    };
    count_while(is_whole)
}

fn count_in_directory(path: &Path) -> Result<u64> {
    let log = fs::read(path.join(LOG)).context("reading the log")?;
    let mut offset = 0_usize;
    count_while(|number| {
        let expected = record(number);
        if How::of(number) == How::Rename {
            return match fs::read(file_of(path, number)) {
                // The name is only given to a file that was synced.
                Ok(found) if found != expected => bail!("file-{number} has other content"),
                Ok(_) => Ok(true),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error).context(format!("reading file-{number}")),
            };
        }
        let end = offset + expected.len();
        let is_whole = log.get(offset..end) == Some(&*expected);
        offset = end;
        Ok(is_whole)
    })
}

/// The number of the first commit that is not whole. None after it may be whole but the next, which the writer had
/// begun: it makes one commit at a time.
fn count_while(mut is_whole: impl FnMut(u64) -> Result<bool>) -> Result<u64> {
    let mut number = 0;
    while number < MAX_COMMITS && is_whole(number)? {
        number += 1;
    }
    let next = number + 1;
    ensure!(
        !is_whole(next)?,
        "commit {number} is not whole, but commit {next} is"
    );
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("commits");
        let mut writer = Writer::new(&path, true).unwrap();
        assert_eq!(count(&path).unwrap(), 0);
        for number in 0..10 {
            writer.commit(number).unwrap();
            assert_eq!(count(&path).unwrap(), number + 1);
        }
    }

    #[test]
    fn a_torn_or_lost_commit_is_not_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("commits");
        let mut writer = Writer::new(&path, true).unwrap();
        (0..7).try_for_each(|number| writer.commit(number)).unwrap();
        let log = File::options().write(true).open(path.join(LOG)).unwrap();
        log.set_len(log.metadata().unwrap().len() - 1).unwrap();
        assert_eq!(count(&path).unwrap(), 6);
        fs::remove_file(file_of(&path, 3)).unwrap();
        let error = count(&path).unwrap_err().to_string();
        assert!(error.contains("commit 3 is not whole"), "{error}");
        fs::write(file_of(&path, 3), "other").unwrap();
        assert!(count(&path).is_err());
    }

    #[test]
    fn a_device_has_a_slot_for_each_commit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let place = Place::Device(file.reopen().unwrap());
        let mut writer = Writer {
            place,
            is_synced: true,
        };
        assert_eq!(count(file.path()).unwrap(), 0);
        (0..5).try_for_each(|number| writer.commit(number)).unwrap();
        assert_eq!(count(file.path()).unwrap(), 5);
        file.as_file().write_all_at(b"x", 4 * SLOT + 9).unwrap();
        assert_eq!(count(file.path()).unwrap(), 4);
    }
}
