//! A process that outlives the one that has started it.

use std::io;
use std::time::{Duration, Instant};

use super::{CHILD_DEADLINE, fork_into, in_child_blocking, wait_readable};

/// Runs `first` and `work` in a process that is nobody's child and has a session of its own. `work` begins when the
/// result is dropped, or this process has ended, and after `deadline` at the latest. Of this process's descriptors
/// it has standard output and error alone.
///
/// # Errors
/// If a process or pipe can't be created.
pub fn detached_after(
    deadline: Duration,
    first: impl FnOnce(),
    work: impl FnOnce(),
) -> io::Result<io::PipeWriter> {
    let (reader, writer) = io::pipe()?;
    let begin = || -> io::Result<()> {
        nix::unistd::setsid()?;
        nix::unistd::dup2_stdin(&reader)?;
        // SAFETY: plain numbers. This process never returns to the owners of these descriptors, which it has
        // from its parent: it exits when `work` has returned.
        unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
        first();
        wait_readable(io::stdin(), Instant::now() + deadline)?;
        Ok(())
    };
    // The process between the two exits at once.
    let forked = in_child_blocking(CHILD_DEADLINE, || {
        let forked = fork_into(|| match begin() {
            Ok(()) => {
                work();
                0
            }
            Err(_) => 1,
        });
        forked.map(drop).map_err(|error| error.to_string())
    })?;
    forked.map_err(io::Error::other)?;
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn work_begins_when_the_pipe_is_closed_without_the_parent_s_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let (file, fifo) = (directory.path().join("file"), directory.path().join("fifo"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (mut other_end, kept) = io::pipe().unwrap();
        let waiting = detached_after(
            Duration::from_secs(60),
            || {},
            || {
                let left: Vec<String> = fs::read_dir("/proc/self/fd")
                    .unwrap()
                    .map(|fd| fd.unwrap().file_name().to_string_lossy().into_owned())
                    .collect();
                let session = nix::unistd::getsid(None).unwrap() == nix::unistd::getpid();
                fs::write(&file, format!("{} {session}", left.len())).unwrap();
                fs::write(&fifo, "done").unwrap();
            },
        );
        // The process has no copy of it, so this end is the last.
        drop(kept);
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(wait_readable(other_end.as_fd(), deadline).unwrap());
        assert_eq!(other_end.read(&mut [0]).unwrap(), 0);
        assert!(!file.exists());
        drop(waiting);
        assert_eq!(fs::read_to_string(&fifo).unwrap(), "done");
        // The three standard streams, and the directory that it reads.
        assert_eq!(fs::read_to_string(&file).unwrap(), "4 true");
    }
}
