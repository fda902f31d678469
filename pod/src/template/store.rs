//! The directory of all templates. Each operation is safe beside any other process's: a template appears by
//! rename(2), complete, and a lock says who makes one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nacre_protocol::state::{STATE_ROOT, TEMPLATES_DIR};
use rustix::fs::{CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};

use super::error::{Absent, Error};
use super::own_files::{Fault, open_directory, open_file};
use super::{Kind, file_system};
use crate::log;
use crate::state::{self, at};

/// Most memory at boot of a guest that is saved, MiB: of each page, the kernel has 64 bytes in the template.
pub const MAX_MEMORY_MIB: u32 = 4096;
/// Most templates that are kept. Each takes about 40 MiB of the host's memory.
pub(super) const MAX_TEMPLATES: usize = 4;
/// A template that has not been used for so long makes room for another one.
const UNUSED_FOR: Duration = Duration::from_secs(3600);
/// How long no pod makes a template that could not be made.
const FAILED_FOR: Duration = Duration::from_secs(600);
/// Most bytes of `kind.json`, or of a record of a failure, that are read.
const MAX_TEXT: u64 = 64 * 1024;

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
    /// Differs from that of any other template with this key.
    pub id: TemplateId,
    /// All but the guest's memory.
    pub state: File,
    /// The guest's memory.
    pub memory: File,
}

/// Which template one is of those that had a key one after the other: the device and the inode of its file `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateId(u64, u64);

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
        let (template, directory) = self.open_unrecorded(key)?;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let now = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // It can't fail for the directory's owner; if it does, the template makes room earlier.
        let _ = futimens(&directory, &now);
        Ok(template)
    }

    /// The template with `key`, and its directory.
    fn open_unrecorded(&self, key: &str) -> Result<(Template, OwnedFd), Absent> {
        let unreadable =
            |path: &Path, fault: Fault| Absent::Unreadable(format!("{}: {fault}", path.display()));
        let root = match self.root() {
            Err(Fault::Missing) => return Err(Absent::None),
            root => root.map_err(|fault| unreadable(&self.0, fault))?,
        };
        let path = self.directory(key);
        let failed = |path: &Path| {
            let path = path.to_owned();
            let root = &root;
            move |fault| match fault {
                Fault::Missing => why_none(root, key),
                Fault::Unsafe(_) => Absent::Unusable {
                    key: key.to_owned(),
                    reason: format!("{}: {fault}", path.display()),
                },
                Fault::Io(_) => unreadable(&path, fault),
            }
        };
        let directory = open_directory(&root, key).map_err(failed(&path))?;
        let open = |name| open_file(&directory, name).map_err(failed(&path.join(name)));
        let (state, memory) = (open(STATE)?, open(MEMORY)?);
        let metadata = state
            .metadata()
            .map_err(|error| Absent::Unreadable(error.to_string()))?;
        let template = Template {
            key: key.to_owned(),
            id: TemplateId(metadata.dev(), metadata.ino()),
            state,
            memory,
        };
        Ok((template, directory))
    }

    /// The store's directory.
    fn root(&self) -> Result<OwnedFd, Fault> {
        open_directory(CWD, &self.0)
    }

    /// The template with `key`, which is not opened.
    ///
    /// # Errors
    /// [`Absent`].
    pub fn find(&self, key: &str) -> Result<Entry, Absent> {
        let (template, directory) = self.open_unrecorded(key)?;
        let unreadable = |error: io::Error| Absent::Unreadable(error.to_string());
        let blocks = |file: &File| Ok(file.metadata().map_err(unreadable)?.blocks());
        let blocks = blocks(&template.state)?.saturating_add(blocks(&template.memory)?);
        let kind = open_file(&directory, KIND).ok();
        let used = File::from(directory)
            .metadata()
            .and_then(|directory| directory.modified());
        Ok(Entry {
            key: template.key,
            kind: kind.and_then(|file| serde_json::from_reader(file.take(MAX_TEXT)).ok()),
            bytes: blocks.saturating_mul(512),
            used: used.map_err(unreadable)?,
        })
    }

    /// Begins to make a template with `key`. The least recently used one makes room if there are many.
    ///
    /// # Errors
    /// [`Error`] with the file, or [`Error::Full`].
    pub fn begin(&self, key: &str) -> Result<Begun, Error> {
        if self.find(key).is_ok() {
            return Ok(Begun::Exists);
        }
        self.prepare()?;
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
        match self.find(key) {
            Ok(_) => return Ok(Begun::Exists),
            Err(Absent::Unreadable(reason)) => return Err(Error::NotMade(reason)),
            Err(_) => {}
        }
        // One that no pod can use, such as with a file too few.
        self.remove(key)?;
        // Of a process that was killed.
        discard(&making.files())?;
        self.collect()?;
        self.make_room()?;
        Ok(Begun::Making(making))
    }

    /// Makes the store's directory. That of the host gets a file system of its own.
    fn prepare(&self) -> Result<(), Error> {
        state::make_directory(&self.0)?;
        let root = self.root().map_err(io::Error::from).map_err(at(&self.0))?;
        if *self.0 != *Self::default().0 || file_system::is_mount_point(&self.0).map_err(at(&self.0))? {
            return Ok(());
        }
        // Those of an older version would be hidden.
        self.collect()?;
        if let Err(error) = file_system::provide(&self.0, &root) {
            log::info(format_args!(
                "{}: templates have no huge pages: {error}",
                self.0.display()
            ));
        }
        Ok(())
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
            .filter_map(|key| self.find(&key).ok())
            .collect();
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(entries)
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
        discard(&removed)?;
        // First by its name, so that no half of it is found if this process is killed.
        match fs::rename(&directory, &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(at(&directory))?,
        }
        Ok(discard(&removed)?)
    }

    /// Removes the template with `key` if it is still the one with `id`, and returns whether it was.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub fn remove_same(&self, key: &str, id: TemplateId) -> Result<bool, Error> {
        // Another one takes a boot to make, and nobody begins as long as this one is there.
        let is_same = self
            .open_unrecorded(key)
            .is_ok_and(|(template, _)| template.id == id);
        if is_same {
            self.remove(key)?;
        }
        Ok(is_same)
    }

    /// Records why pods have no template with `key`, so that none makes one for a while.
    ///
    /// # Errors
    /// [`Error`] with the record.
    pub fn record_failure(&self, key: &str, reason: &str) -> Result<(), Error> {
        let record = self.beside(key, FAILED);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        // A FIFO in its place must not block, and a link not be followed.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let written = options
            .open(&record)
            .and_then(|mut file| file.write_all(reason.as_bytes()));
        Ok(written.map_err(at(&record))?)
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
            let is_current = match self.find(key) {
                Ok(entry) => entry.kind.as_ref().is_some_and(Kind::is_current),
                // Such as for want of descriptors.
                Err(Absent::Unreadable(_)) => continue,
                Err(_) => false,
            };
            if !is_current {
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
                    Ok(Some(_held)) => discard(&path)?,
                    Ok(None) | Err(_) => continue,
                },
                Some(REMOVED) => discard(&path)?,
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

/// Why there is no template with `key` in the store's directory `root`.
fn why_none(root: &OwnedFd, key: &str) -> Absent {
    let Ok(record) = open_file(root, format!("{key}.{FAILED}")) else {
        return Absent::None;
    };
    if age(record.metadata().and_then(|metadata| metadata.modified())) >= FAILED_FOR {
        return Absent::None;
    }
    let mut reason = Vec::new();
    // An error leaves the reason shorter.
    let _ = record.take(MAX_TEXT).read_to_end(&mut reason);
    Absent::Failed(String::from_utf8_lossy(&reason).into_owned())
}

/// Removes what is at `path`: a directory with all that is in it, or anything else.
fn discard(path: &Path) -> Result<(), state::Error> {
    match state::remove_tree(path) {
        Err(error) if error.source.kind() == io::ErrorKind::NotADirectory => state::remove_file(path),
        removed => removed,
    }
}

/// Locks the directory at `path`; None if another process has it, or it was removed meanwhile.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let directory = match options.open(path) {
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
    pub fn publish(&self, kind: &Kind) -> Result<(), Error> {
        state::write(&self.files().join(KIND), kind)?;
        let directory = self.store.directory(&self.key);
        fs::rename(self.files(), &directory).map_err(at(&directory))?;
        Ok(state::remove_file(&self.store.beside(&self.key, FAILED))?)
    }

    /// Removes what was written, and then records `reason`: the record needs room, which may be what was missing.
    ///
    /// # Errors
    /// [`Error`] with the file.
    pub fn fail(&self, reason: &str) -> Result<(), Error> {
        discard(&self.files())?;
        self.store.record_failure(&self.key, reason)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Err(error) = state::remove_tree(&self.directory) {
            log::warn(format_args!("removing {error}"));
        }
    }
}
