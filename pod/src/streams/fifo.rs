//! Opens what the caller names for a stream, as containerd's own shims do. Standard input is also held open
//! for writing until CloseIO, so that a client can detach and attach again. Outputs are also held open for
//! reading, so that a reader that goes away neither ends the process nor loses what it wrote.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Why a stream can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{0}: unknown scheme {1:?}: expected a path, fifo://, file://, binary:// or binary-v2://")]
    Scheme(String, String),
    #[error("drawing a stream's address: {0}")]
    Random(io::Error),
    #[error("starting logger {}: {source}", path.display())]
    Logger { path: PathBuf, source: io::Error },
}

/// Standard input.
#[derive(Debug)]
pub struct Source {
    pub reader: OwnedFd,
    pub writer: Writer,
}

/// Holds standard input's FIFO open for writing; CloseIO drops it.
#[derive(Debug)]
pub struct Writer {
    /// Never written to.
    _file: File,
}

/// Standard output or error.
#[derive(Debug)]
pub enum Sink {
    /// A FIFO, and its reading end: held until the container is deleted, so that what is written while no
    /// reader is attached is not lost. Only while another reader reads the rest it is closed.
    Fifo { writer: OwnedFd, reader: File },
    /// A pipe to a program.
    Pipe(OwnedFd),
    /// A file, appended to.
    File(File),
}

fn open(path: &Path, options: &mut std::fs::OpenOptions) -> Result<File, Error> {
    options
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })
}

/// The path in `uri`, and whether a missing file may be created.
fn split(uri: &str) -> Result<(&Path, bool), Error> {
    match uri.split_once("://") {
        None => Ok((Path::new(uri), false)),
        Some(("fifo", path)) => Ok((Path::new(path), false)),
        Some(("file", path)) => Ok((Path::new(path), true)),
        Some((scheme, _)) => Err(Error::Scheme(uri.to_owned(), scheme.to_owned())),
    }
}

/// Opens standard input; None for an empty URI.
pub fn open_source(uri: &str) -> Result<Option<Source>, Error> {
    if uri.is_empty() {
        return Ok(None);
    }
    let (path, _) = split(uri)?;
    // The reader first: a FIFO opened for writing without one fails with ENXIO.
    let reader = open(path, File::options().read(true))?;
    let writer = open(path, File::options().write(true))?;
    Ok(Some(Source {
        reader: reader.into(),
        writer: Writer { _file: writer },
    }))
}

/// Opens standard output or error; None for an empty URI.
pub fn open_sink(uri: &str) -> Result<Option<Sink>, Error> {
    if uri.is_empty() {
        return Ok(None);
    }
    let (path, may_create) = split(uri)?;
    if may_create && let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|source| Error::Open {
            path: directory.to_owned(),
            source,
        })?;
    }
    let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if is_fifo {
        // As above: opening a FIFO for writing fails without a reader.
        let reader = open(path, File::options().read(true))?;
        return Ok(Some(Sink::Fifo {
            writer: open(path, File::options().write(true))?.into(),
            reader,
        }));
    }
    Ok(Some(Sink::File(open(
        path,
        File::options().append(true).create(may_create).mode(0o644),
    )?)))
}
