//! The directory of all templates. Each operation is safe beside any other process's: a template appears by
//! rename(2), complete, and a lock says who makes one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nacre_protocol::state::{STATE_ROOT, TEMPLATES_DIR};
use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, utimensat};

use super::Kind;
use crate::state::{self, at};

/// Most memory at boot of a guest that is saved, MiB: of each page, the kernel has 64 bytes in the template.
pub const MAX_MEMORY_MIB: u32 = 4096;
/// Most templates that are kept. Each takes about 40 MiB of the host's memory.
const MAX_TEMPLATES: usize = 4;
/// A template that has not been used for so long makes room for another one.
const UNUSED_FOR: Duration = Duration::from_secs(3600);
/// How long no pod makes a template that could not be made.
const FAILED_FOR: Duration = Duration::from_secs(600);

const STATE: &str = "state";
const MEMORY: &str = "memory";
const KIND: &str = "kind.json";
const BUILDING: &str = "building";
const FAILED: &str = "failed";
/// Of a template that is being removed.
const REMOVED: &str = "removed";
/// In the directory of a template that is being made.
const NEW: &str = "new";

/// The directory of all templates.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

/// A template that is open, and stays readable if it is removed.
#[derive(Debug)]
pub struct Template {
    /// The name of its directory.
    pub key: String,
    /// All but the guest's memory.
    pub state: File,
    /// The guest's memory.
    pub memory: File,
}

/// Why a pod has no template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// `templates = false` in config.toml.
    #[error("templates are off in config.toml")]
    Off,
    /// No pod of this kind has started before.
    #[error("there is no template for this kind of pod yet")]
    None,
    /// Its console is to be logged from the boot on.
    #[error("console_to_log in config.toml: the guest boots, so that the log has all of it")]
    Logged,
    /// Its memory at boot, MiB, would make a large template.
    #[error("the pod has {0} MiB at boot, and templates at most {MAX_MEMORY_MIB}")]
    Large(u32),
    /// One could not be made.
    #[error("no template for this kind of pod could be made: {0}")]
    Failed(String),
    /// A file of it can't be opened, for another reason than that it does not exist.
    #[error("{0}")]
    Unreadable(String),
}

/// An operation on a template failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error(transparent)]
    State(#[from] state::Error),
    /// All templates were used not long ago.
    #[error("there are {MAX_TEMPLATES} templates already, and each was used in the last hour")]
    Full,
    /// The VMM did not make it.
    #[error("{0}")]
    NotMade(String),
}

/// A template in a list.
#[derive(Debug)]
pub struct Entry {
    /// The name of its directory.
    pub key: String,
    /// What it is of; None if `kind.json` can't be read.
    pub kind: Option<Kind>,
    /// The host memory that it takes, bytes.
    pub bytes: u64,
    /// When a pod opened it last.
    pub used: SystemTime,
}

/// What [`Store::collect`] removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Names below the store's directory.
    pub removed: Vec<String>,
}

/// What [`Store::begin`] has found.
#[derive(Debug)]
pub enum Begun {
    /// The caller makes the template.
    Making(Making),
    /// It exists.
    Exists,
    /// Another process makes it.
    Elsewhere,
}

/// The right to make a template; what is unfinished is removed on drop.
#[derive(Debug)]
pub struct Making {
    store: Store,
    key: String,
    directory: PathBuf,
    _lock: File,
}

impl Default for Store {
    fn default() -> Self {
        Self::at(Path::new(STATE_ROOT))
    }
}

impl Store {
    /// The store of the state directory `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self(root.join(TEMPLATES_DIR))
    }

    fn directory(&self, key: &str) -> PathBuf {
        self.0.join(key)
    }

    fn beside(&self, key: &str, extension: &str) -> PathBuf {
        self.0.join(format!("{key}.{extension}"))
    }

    /// Opens the template with `key`, and records that it was used.
    ///
    /// # Errors
    /// [`Absent`].
    pub fn open(&self, key: &str) -> Result<Template, Absent> {
        let directory = self.directory(key);
        let open = |name| {
            let path = directory.join(name);
            File::open(&path).map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    self.why_none(key)
                } else {
                    Absent::Unreadable(format!("{}: {error}", path.display()))
                }
            })
        };
        let template = Template {
            key: key.to_owned(),
            state: open(STATE)?,
            memory: open(MEMORY)?,
        };
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let now = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // Fails if it is removed at this moment, which does not matter to the open files.
        let _ = utimensat(CWD, &directory, &now, AtFlags::empty());
        Ok(template)
    }

    /// The template with `key`, which is not opened.
    ///
    /// # Errors
    /// [`Absent`].
    pub fn find(&self, key: &str) -> Result<Entry, Absent> {
        self.entry(key.to_owned()).ok_or_else(|| self.why_none(key))
    }

    /// Why there is no template with `key`.
    fn why_none(&self, key: &str) -> Absent {
        let record = self.beside(key, FAILED);
        let is_recent = |metadata: fs::Metadata| age(metadata.modified()) < FAILED_FOR;
        match fs::metadata(&record).map(is_recent) {
            Ok(true) => Absent::Failed(fs::read_to_string(&record).unwrap_or_default()),
            Ok(false) | Err(_) => Absent::None,
        }
    }

    /// Begins to make a template with `key`. The least recently used one makes room if there are many.
    ///
    /// # Errors
    /// [`Error`] with the file, or [`Error::Full`].
    pub fn begin(&self, key: &str) -> Result<Begun, Error> {
        if self.find(key).is_ok() {
            return Ok(Begun::Exists);
        }
        let directory = self.beside(key, BUILDING);
        state::make_directory(&directory)?;
        let Some(lock) = lock(&directory).map_err(at(&directory))? else {
            return Ok(Begun::Elsewhere);
        };
        // From now on, dropping it removes the directory.
        let making = Making {
            store: self.clone(),
            key: key.to_owned(),
            directory,
            _lock: lock,
        };
        if self.find(key).is_ok() {
            return Ok(Begun::Exists);
        }
        // A template with a file too few.
        self.remove(key)?;
        // Of a process that was killed.
        state::remove_tree(&making.files())?;
        self.collect()?;
        self.make_room()?;
        Ok(Begun::Making(making))
    }

    /// Removes the least recently used template if there are too many for another one.
    fn make_room(&self) -> Result<(), Error> {
        let mut entries = self.list()?;
        if entries.len() < MAX_TEMPLATES {
            return Ok(());
        }
        entries.sort_by_key(|entry| entry.used);
        match entries.first() {
            Some(oldest) if age(Ok(oldest.used)) >= UNUSED_FOR => self.remove(&oldest.key),
            _ => Err(Error::Full),
        }
    }

    /// All templates, in the order of their keys.
    ///
    /// # Errors
    /// [`Error`] if the store can't be listed.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries: Vec<Entry> = self
            .names()?
            .into_iter()
            .filter(|name| !name.contains('.'))
            .filter_map(|key| self.entry(key))
            .collect();
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(entries)
    }

    /// The template with `key`; None if it is removed at this moment.
    fn entry(&self, key: String) -> Option<Entry> {
        let directory = self.directory(&key);
        let used = fs::metadata(&directory).ok()?.modified().ok()?;
        let blocks = |name| Some(fs::metadata(directory.join(name)).ok()?.blocks());
        let blocks = blocks(STATE)?.saturating_add(blocks(MEMORY)?);
        Some(Entry {
            kind: state::read(&directory.join(KIND)).ok().flatten(),
            bytes: blocks.saturating_mul(512),
            used,
            key,
        })
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&self.0))?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        Ok(names.collect::<io::Result<_>>().map_err(at(&self.0))?)
    }

    /// Removes the template with `key`. Pods that run are not affected.
    ///
    /// # Errors
    /// [`Error`] with its directory.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let (directory, removed) = (self.directory(key), self.beside(key, REMOVED));
        // Of a process that was killed.
        state::remove_tree(&removed)?;
        // First by its name, so that no half of it is found if this process is killed.
        match fs::rename(&directory, &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(at(&directory))?,
        }
        Ok(state::remove_tree(&removed)?)
    }

    /// Records that the template with `key` could not be made, so that pods do not try again at once.
    ///
    /// # Errors
    /// [`Error`] with the record.
    pub fn record_failure(&self, key: &str, reason: &str) -> Result<(), Error> {
        let record = self.beside(key, FAILED);
        Ok(fs::write(&record, reason).map_err(at(&record))?)
    }

    /// Removes what no pod can use: templates of files that were replaced since; what processes left that were
    /// killed; old records of failures.
    ///
    /// # Errors
    /// [`Error`] with the first object that can't be removed.
    pub fn collect(&self) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let names = self.names()?;
        for key in names.iter().filter(|name| !name.contains('.')) {
            let kind = self.entry(key.clone()).and_then(|entry| entry.kind);
            if !kind.as_ref().is_some_and(Kind::is_current) {
                self.remove(key)?;
                collected.removed.push(key.clone());
            }
        }
        for name in names {
            let path = self.0.join(&name);
            let extension = path.extension().and_then(|extension| extension.to_str());
            match extension {
                Some(BUILDING) => match lock(&path) {
                    // Of a process that was killed. Nobody else has the lock until it is removed.
                    Ok(Some(_held)) => state::remove_tree(&path)?,
                    Ok(None) | Err(_) => continue,
                },
                Some(REMOVED) => state::remove_tree(&path)?,
                Some(FAILED) if age(fs::metadata(&path).and_then(|it| it.modified())) >= FAILED_FOR => {
                    state::remove_file(&path)?;
                }
                _ => continue,
            }
            collected.removed.push(name);
        }
        Ok(collected)
    }
}

/// Locks the directory at `path`; None if another process has it, or it was removed meanwhile.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let directory = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    // Who had the lock before may have removed the directory, and another one may have made it again.
    let is_locked = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        now => now?.ino() == directory.metadata()?.ino(),
    };
    Ok(is_locked.then_some(directory))
}

/// How long ago `time` was. A time to come is long ago: the clock was set back.
fn age(time: io::Result<SystemTime>) -> Duration {
    time.map_or(Duration::MAX, |time| time.elapsed().unwrap_or(Duration::MAX))
}

impl Making {
    /// The directory that the VMM creates and writes.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.directory.join(NEW)
    }

    /// Makes the template in [`Making::files`], which is of `kind`, visible to all.
    ///
    /// # Errors
    /// [`Error`] with the file.
    pub fn publish(self, kind: &Kind) -> Result<(), Error> {
        state::write(&self.files().join(KIND), kind)?;
        let directory = self.store.directory(&self.key);
        fs::rename(self.files(), &directory).map_err(at(&directory))?;
        Ok(state::remove_file(&self.store.beside(&self.key, FAILED))?)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Err(error) = state::remove_tree(&self.directory) {
            crate::log::warn(format_args!("removing {error}"));
        }
    }
}
