//! A forked child that writes what comes through a pipe to a regular file. Such a write waits for the file's file
//! system, which may hang (NFS without its server), and the shim has one thread for all containers of its pod.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::{ForkedChild, fork_bound, pidfd_of, reap, watch};

/// Bytes that are written at once: the default capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// The child, which ends at the end of its pipe. Killed if this is dropped before.
pub struct FileWriter(ForkedChild);

impl FileWriter {
    /// Forks the child, which appends to `file`; also returns the pipe's end to write to.
    ///
    /// # Errors
    /// If no process or pipe can be created.
    pub fn start(file: &File) -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = io::pipe()?;
        let child = fork_bound(|| {
            // The end of the pipe and of others must not wait for this child.
            let streams = nix::unistd::dup2_stdin(&reader).and_then(|()| nix::unistd::dup2_stdout(file));
            // SAFETY: plain numbers. This process never returns to the owners of these descriptors.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            let copied = streams.map_err(io::Error::from).and_then(|()| copy());
            copied.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
        })?;
        Ok((Self(ForkedChild(watch(pidfd_of(child)?)?)), writer.into()))
    }

    /// Waits until all is written that was in the pipe when it ended.
    ///
    /// # Errors
    /// That of write(2), or of waitid(2).
    pub async fn finish(self) -> io::Result<()> {
        let child: &AsyncFd<OwnedFd> = &self.0.0;
        drop(child.readable().await?);
        match reap(child.get_ref())?.exit_status() {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::other("what writes the file was killed")),
        }
    }
}

/// Copies standard input to standard output.
fn copy() -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => write_all(buffer.get(..length).unwrap_or_default())?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn what_comes_through_the_pipe_is_appended() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"old ").unwrap();
        let (writer, pipe) = FileWriter::start(&file).unwrap();
        File::from(pipe).write_all(&[b'x'; 3 * CHUNK]).unwrap();
        writer.finish().await.unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 + 3 * CHUNK as u64);
    }

    #[tokio::test]
    async fn a_write_that_fails_has_its_reason() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (writer, pipe) = FileWriter::start(&full).unwrap();
        File::from(pipe).write_all(b"x").unwrap();
        let error = writer.finish().await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    /// As to a file whose file system hangs: nobody reads the second pipe, which is full after the first chunk.
    #[tokio::test]
    async fn only_the_child_waits_for_a_write() {
        let (_unread, full) = io::pipe().unwrap();
        let (writer, pipe) = FileWriter::start(&File::from(OwnedFd::from(full))).unwrap();
        File::from(pipe).write_all(&[b'x'; 2 * CHUNK]).unwrap();
        let short = std::time::Duration::from_millis(100);
        assert!(tokio::time::timeout(short, writer.finish()).await.is_err());
    }

    #[tokio::test]
    async fn a_child_that_is_not_waited_for_is_killed() {
        let (writer, pipe) = FileWriter::start(&tempfile::tempfile().unwrap()).unwrap();
        drop(writer);
        let error = File::from(pipe).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
