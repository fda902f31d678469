//! Opens what containerd names for a stream, as its own shims do: standard input read, and held open for writing until
//! CloseIO, so that a client that comes back finds it; outputs held open for reading, too, so that a reader that went
//! away neither ends the process nor loses what it wrote.

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
    #[error("{0}: {1}:// is no scheme of a stream: fifo, file, binary and binary-v2 are")]
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

/// Holds standard input open; dropped with CloseIO.
#[derive(Debug)]
pub struct Writer {
    /// Never written: that it is open is all it is for.
    _held: File,
}

/// Standard output or error.
#[derive(Debug)]
pub enum Sink {
    /// A FIFO, and its other end: held for as long as the container is there, so that what was written before its reader
    /// came (back) is not lost.
    Fifo { writer: OwnedFd, held: File },
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

/// The path in `uri`, and whether a file may be made there.
fn split(uri: &str) -> Result<(&Path, bool), Error> {
    match uri.split_once("://") {
        None => Ok((Path::new(uri), false)),
        Some(("fifo", path)) => Ok((Path::new(path), false)),
        Some(("file", path)) => Ok((Path::new(path), true)),
        Some((scheme, _)) => Err(Error::Scheme(uri.to_owned(), scheme.to_owned())),
    }
}

/// Opens standard input; None where none is wanted.
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
        writer: Writer { _held: writer },
    }))
}

/// Opens standard output or error; None where none is wanted.
pub fn open_sink(uri: &str) -> Result<Option<Sink>, Error> {
    if uri.is_empty() {
        return Ok(None);
    }
    let (path, make) = split(uri)?;
    if make && let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|source| Error::Open {
            path: directory.to_owned(),
            source,
        })?;
    }
    let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if is_fifo {
        // As above: without a reader the FIFO could not be opened for writing.
        let held = open(path, File::options().read(true))?;
        return Ok(Some(Sink::Fifo {
            writer: open(path, File::options().write(true))?.into(),
            held,
        }));
    }
    Ok(Some(Sink::File(open(
        path,
        File::options().append(true).create(make).mode(0o644),
    )?)))
}
