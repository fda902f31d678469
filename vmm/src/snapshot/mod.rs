//! Snapshots: the state of a paused machine in two files of a directory, and a machine that continues from
//! them in another process. The standalone mode makes and opens them, and the shim passes them open as a
//! template; the machine's own part is in `machine/saved.rs` and `machine/restore.rs`. docs/snapshots.md is
//! the overview.
//!
//! ```text
//! Target ◀─save─ Machine          Snapshot ─restore─▶ Machine
//!    │ memory, then state             ▲
//!    └──────────▶ files ──open────────┘  refused unless all is as it was: build, kernel, initramfs, memory,
//!                                        and, before devices exist, the host
//! ```
//!
//! [`state`] is what is saved, [`vcpu`] a vCPU's part of it, [`format`](mod@format) its encoding, [`memory`]
//! the file of guest memory, [`huge_pages`] the parts of it that are in huge pages, [`content`] and [`host`] what must
//! be the same. Nothing here runs while the guest does.

pub mod content;
pub mod format;
pub mod host;
pub mod huge_pages;
pub mod memory;
pub mod state;
pub mod vcpu;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};

use self::content::FileId;
use self::format::Header;
use self::state::MachineState;

/// The build of this program: two builds with the same id read and write the same state.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("NACRE_VMM_SOURCES"));

/// The names of the files.
const MEMORY: &str = "memory";
const STATE: &str = "state";

/// Why a snapshot was not written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct WriteError {
    /// The file or directory.
    pub file: PathBuf,
    /// The cause.
    pub reason: io::Error,
}

/// Why a snapshot can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file can't be read.
    #[error("{}: {reason}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        reason: io::Error,
    },
    /// A file of the snapshot is no regular file of this user's that only this user can write.
    #[error("{}: must be a regular file that belongs to the user of this process and that no other can write", .0.display())]
    Unsafe(PathBuf),
    /// The file `state` is not one that this build can use.
    #[error("{}: {reason}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: format::Error,
    },
    /// The kernel, the initramfs or the memory is not that of the snapshot.
    #[error("{} is not the {what} of the snapshot: {difference}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What it should be.
        what: &'static str,
        /// The first difference.
        difference: content::Difference,
    },
}

/// The files of the guest that a snapshot is of.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// The guest kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
}

/// Where a snapshot is written to: files that were opened before the jail is closed. A process that ends
/// before it has written all leaves a directory that [`Snapshot::open`] refuses, since `state` is written
/// last.
#[derive(Debug)]
pub struct Target {
    directory: PathBuf,
    memory: File,
    state: File,
    kernel: FileId,
    initramfs: FileId,
    extra_cmdline: String,
}

impl Target {
    /// Creates the directory `directory`, which must not exist, and both files in it. Reads `images`. The
    /// guest's kernel has got the parameters `extra_cmdline` besides the VMM's own.
    ///
    /// # Errors
    /// [`WriteError`] with the file that can't be created or read.
    pub fn create(directory: &Path, images: Images<'_>, extra_cmdline: &str) -> Result<Self, WriteError> {
        let at = |file: &Path| {
            let file = file.to_owned();
            |reason| WriteError { file, reason }
        };
        let id = |file: &Path| {
            let opened = File::open(file);
            opened.and_then(|file| FileId::of(&file)).map_err(at(file))
        };
        let (kernel, initramfs) = (id(images.kernel)?, id(images.initramfs)?);
        let made = DirBuilder::new().mode(0o700).create(directory);
        made.map_err(at(directory))?;
        let create = |name| {
            let file = directory.join(name);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            options.open(&file).map_err(at(&file))
        };
        Ok(Self {
            memory: create(MEMORY)?,
            state: create(STATE)?,
            directory: directory.to_owned(),
            kernel,
            initramfs,
            extra_cmdline: extra_cmdline.to_owned(),
        })
    }

    /// The file for guest memory.
    #[must_use]
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Completes the snapshot of `machine`, whose memory was written and has the id `memory`.
    ///
    /// # Errors
    /// [`WriteError`] if the state can't be encoded or written.
    pub fn finish(&self, machine: &MachineState, memory: FileId) -> Result<(), WriteError> {
        let header = Header {
            build: BUILD.to_owned(),
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            memory,
            extra_cmdline: self.extra_cmdline.clone(),
        };
        let encoded = format::encode(&header, machine).map_err(io::Error::other);
        encoded
            .and_then(|bytes| self.state.write_all_at(&bytes, 0))
            .and_then(|()| self.state.sync_all())
            .map_err(self.failed(STATE))
    }

    /// For `map_err` on an operation on the file `name`.
    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> WriteError {
        let file = self.directory.join(name);
        |reason| WriteError { file, reason }
    }

    /// For `map_err` on an operation on the file of guest memory.
    pub fn memory_failed(&self) -> impl FnOnce(io::Error) -> WriteError {
        self.failed(MEMORY)
    }
}

/// A snapshot that this program can restore, if the host is the same.
#[derive(Debug)]
pub struct Snapshot {
    /// The state of the machine.
    pub machine: MachineState,
    /// All of guest memory.
    pub memory: File,
    /// See [`Header::extra_cmdline`].
    pub extra_cmdline: String,
}

/// An open file, with its name in messages.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The path, or what the file is for.
    pub name: &'a Path,
    /// The file.
    pub file: &'a File,
}

/// The files of a snapshot, and those of the guest that it must be of, open for reading. Other processes may
/// have the same open files: their positions are not used.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// All but guest memory.
    pub state: Named<'a>,
    /// Guest memory.
    pub memory: Named<'a>,
    /// The guest kernel.
    pub kernel: Named<'a>,
    /// The initramfs.
    pub initramfs: Named<'a>,
}

impl Snapshot {
    /// Opens the snapshot in `directory`, which must be of the guest that `images` are.
    ///
    /// # Errors
    /// [`OpenError`] with the first thing that is wrong.
    pub fn open(directory: &Path, images: Images<'_>) -> Result<Self, OpenError> {
        let [state, memory] = [STATE, MEMORY].map(|name| directory.join(name));
        let named = |name, file| Named { name, file };
        Self::of_files(Files {
            state: named(&state, &open_own(&state)?),
            memory: named(&memory, &open_own(&memory)?),
            kernel: named(images.kernel, &open(images.kernel)?),
            initramfs: named(images.initramfs, &open(images.initramfs)?),
        })
    }

    /// The snapshot in `files`.
    ///
    /// # Errors
    /// [`OpenError`] with the first thing that is wrong.
    pub fn of_files(files: Files<'_>) -> Result<Self, OpenError> {
        check_owner(files.state)?;
        check_owner(files.memory)?;
        let (header, machine) = read_state(files.state)?;
        check("kernel", files.kernel, &header.kernel)?;
        check("initramfs", files.initramfs, &header.initramfs)?;
        check("memory", files.memory, &header.memory)?;
        let memory = files.memory.file.try_clone();
        Ok(Self {
            machine,
            memory: memory.map_err(failed(files.memory.name))?,
            extra_cmdline: header.extra_cmdline,
        })
    }
}

fn read_state(Named { name, file }: Named<'_>) -> Result<(Header, MachineState), OpenError> {
    let bytes = fstat(file)
        .map_err(io::Error::from)
        .map_err(failed(name))?
        .st_size;
    let bytes = u64::try_from(bytes).unwrap_or_default().min(format::MAX_BYTES);
    let mut state = vec![0; usize::try_from(bytes).unwrap_or_default()];
    file.read_exact_at(&mut state, 0).map_err(failed(name))?;
    format::decode(&state, BUILD).map_err(|reason| OpenError::Format {
        file: name.to_owned(),
        reason,
    })
}

/// For `map_err` on an operation on `file`.
fn failed(file: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let file = file.to_owned();
    |reason| OpenError::Io { file, reason }
}

fn open(file: &Path) -> Result<File, OpenError> {
    File::open(file).map_err(failed(file))
}

/// Opens a file of the snapshot itself, which is no link.
fn open_own(file: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(file).map_err(failed(file))
}

/// Refuses a file of the snapshot itself that another user can change.
fn check_owner(Named { name, file }: Named<'_>) -> Result<(), OpenError> {
    let stat = fstat(file).map_err(io::Error::from).map_err(failed(name))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let is_own = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0;
    if is_file && is_own {
        Ok(())
    } else {
        Err(OpenError::Unsafe(name.to_owned()))
    }
}

fn check(what: &'static str, Named { name, file }: Named<'_>, expected: &FileId) -> Result<(), OpenError> {
    let compared = expected.compare(file).map_err(failed(name))?;
    compared.map_err(|difference| OpenError::Content {
        file: name.to_owned(),
        what,
        difference,
    })
}

#[cfg(test)]
mod tests;
