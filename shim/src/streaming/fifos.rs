//! The FIFOs in which streams end, and the addresses by which Create and Exec name them. A FIFO exists from its
//! stream's first opening until its data has an end, or the pod's directory is removed.

use std::io;
use std::path::{Path, PathBuf};

use nacre_pod::{Error, StdioPaths, log};
use nix::sys::stat::Mode;

/// What an address contains before the stream's id: containerd adds it to the shim's own address.
const QUERY: &str = "?streaming_id=";
/// How an address starts that this service answers at.
const SCHEME: &str = "ttrpc+unix://";
/// The longest id; a file has its name.
const LONGEST: usize = 200;

/// Which way the bytes of a stream go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Standard input.
    ToProcess,
    /// Standard output or error.
    FromProcess,
}

/// A stream's FIFO.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    /// From or to the process.
    pub direction: Direction,
    /// Whether the stream was not opened before: then no process has the FIFO yet.
    pub is_new: bool,
}

/// The FIFOs of a pod.
#[derive(Debug, Clone)]
pub struct Fifos {
    directory: PathBuf,
}

impl Fifos {
    /// Those of the pod with this directory. Nothing is made until a stream is opened.
    pub fn new(pod: &Path) -> Self {
        Self {
            directory: pod.join("streams"),
        }
    }

    /// The FIFO of stream `id`, which is made if there is none.
    ///
    /// # Errors
    /// [`Error::Refused`] with the id or path.
    pub fn open(&self, id: &str) -> Result<Fifo, Error> {
        let (direction, path) = self.named(id)?;
        let failed = |error: io::Error| Error::Refused(format!("making {}: {error}", path.display()));
        match std::fs::create_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let is_new = match nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) => true,
            Err(nix::errno::Errno::EEXIST) => false,
            Err(error) => return Err(failed(error.into())),
        };
        Ok(Fifo {
            path,
            direction,
            is_new,
        })
    }

    /// Replaces the addresses of open streams in `paths` by their FIFOs.
    ///
    /// # Errors
    /// [`Error::Refused`] with the address of a stream that is not open.
    pub fn resolve(&self, paths: &mut StdioPaths) -> Result<(), Error> {
        for (name, path) in [
            ("stdin", &mut paths.stdin),
            ("stdout", &mut paths.stdout),
            ("stderr", &mut paths.stderr),
        ] {
            let Some((address, id)) = path.split_once(QUERY) else {
                continue;
            };
            if !address.starts_with(SCHEME) {
                continue;
            }
            let (_, fifo) = self.named(id)?;
            if !fifo.exists() {
                return Err(Error::Refused(format!("{name}: {path}: this stream is not open")));
            }
            *path = fifo.display().to_string();
        }
        Ok(())
    }

    /// The direction and path that an id names.
    fn named(&self, id: &str) -> Result<(Direction, PathBuf), Error> {
        let refused = |rule: &str| Error::Refused(format!("stream {id:?}: expected {rule}"));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if id.len() > LONGEST || id.starts_with('.') || !id.bytes().all(is_name) {
            return Err(refused("an id of letters, digits, '-', '_' and '.'"));
        }
        let direction = match id.rsplit('-').next() {
            Some("stdin") => Direction::ToProcess,
            Some("stdout" | "stderr") => Direction::FromProcess,
            Some(_) | None => return Err(refused("an id that ends in -stdin, -stdout or -stderr")),
        };
        Ok((direction, self.directory.join(id)))
    }
}

impl Fifo {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it: nobody opens it again.
    pub fn remove(&self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn(format_args!("removing {}: {error}", self.path.display()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(id: &str) -> String {
        format!("ttrpc+unix:///run/containerd/s/a{QUERY}{id}")
    }

    #[test]
    fn addresses_of_open_streams_become_fifos_and_other_paths_stay() {
        let directory = tempfile::tempdir().unwrap();
        let fifos = Fifos::new(directory.path());
        let (first, again) = (fifos.open("c-stdout").unwrap(), fifos.open("c-stdout").unwrap());
        assert_eq!((first.is_new, again.is_new), (true, false));
        assert_eq!(first.direction, Direction::FromProcess);
        let mut paths = StdioPaths {
            stdin: "/run/fifo".into(),
            stdout: address("c-stdout"),
            stderr: "binary:///logger?streaming_id=c-stdout".into(),
            terminal: false,
        };
        fifos.resolve(&mut paths).unwrap();
        assert_eq!(paths.stdin, "/run/fifo");
        assert_eq!(paths.stdout, first.path().display().to_string());
        assert!(paths.stderr.starts_with("binary://"));
        first.remove();
        first.remove();
        let mut paths = StdioPaths {
            stdout: address("c-stdout"),
            ..StdioPaths::default()
        };
        let error = fifos.resolve(&mut paths).unwrap_err().to_string();
        assert!(
            error.starts_with("stdout: ttrpc+unix:///") && error.ends_with("is not open"),
            "{error}"
        );
    }

    #[test]
    fn an_id_is_the_name_of_a_file_and_tells_the_direction() {
        let directory = tempfile::tempdir().unwrap();
        let fifos = Fifos::new(directory.path());
        let long = format!("{}-stdin", "x".repeat(LONGEST));
        for id in [
            "",
            "a",
            "../a-stdin",
            ".-stdin",
            "a/b-stdin",
            "a b-stdin",
            "a-stdio",
            &long,
        ] {
            let error = fifos.open(id).unwrap_err().to_string();
            assert!(error.starts_with(&format!("stream {id:?}: expected ")), "{error}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(fifos.open("a-b.c-stdin").unwrap().direction, Direction::ToProcess);
    }
}
