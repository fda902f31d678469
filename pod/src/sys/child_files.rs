//! A forked child that returns a value and open files, such as taps of a network namespace that its parent
//! does not enter.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nacre_protocol::control::{Channel, Error, socket_pair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CHILD_DEADLINE, ForkedChild, MAX_REASON, fork_bound, pidfd_of, watch};

/// Runs `work` in a forked child, as [`super::in_child`], and returns the value and the files that it
/// returns. The child is killed with the shim, so that nothing is made that nobody knows.
///
/// # Errors
/// If no process or socket can be created, or the child did not exit in time or was killed.
pub async fn in_child_with_files<T: Serialize + DeserializeOwned>(
    work: impl FnOnce() -> Result<(T, Vec<OwnedFd>), String>,
) -> io::Result<Result<(T, Vec<OwnedFd>), String>> {
    let (ours, theirs) = socket_pair()?;
    let theirs = Channel::new(theirs);
    let child = fork_bound(move || i32::from(send(&theirs, work()).is_err()))?;
    let status = ForkedChild(watch(pidfd_of(child)?)?).wait(CHILD_DEADLINE).await?;
    // The child has exited and the closure is dropped, so this returns at once.
    match Channel::new(ours).receive::<Result<T, String>>() {
        Ok((result, files)) => Ok(result.map(|value| (value, files))),
        Err(error) => Err(io::Error::other(format!(
            "the child process failed: {status:?}: {error}"
        ))),
    }
}

/// A value that is too large is an error for the parent, too.
fn send<T: Serialize>(to: &Channel, result: Result<(T, Vec<OwnedFd>), String>) -> Result<(), Error> {
    let reason = match result {
        Ok((value, files)) => {
            let fds: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
            match to.send(&Ok::<&T, String>(&value), &fds) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            }
        }
        Err(mut reason) => {
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            reason
        }
    };
    to.send(&Err::<(), String>(reason), &[])
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn a_value_and_files_are_returned() {
        let work = || {
            let (reader, mut writer) = io::pipe().unwrap();
            io::Write::write_all(&mut writer, b"x").unwrap();
            Ok((7, vec![OwnedFd::from(reader)]))
        };
        let (value, files) = in_child_with_files(work).await.unwrap().unwrap();
        let mut text = String::new();
        for file in files {
            std::fs::File::from(file).read_to_string(&mut text).unwrap();
        }
        assert_eq!((value, text.as_str()), (7, "x"));
    }

    #[tokio::test]
    async fn a_failure_has_a_reason() {
        let work = || Err::<((), Vec<OwnedFd>), _>("é".repeat(MAX_REASON));
        let reason = in_child_with_files(work).await.unwrap().unwrap_err();
        assert_eq!(reason.len(), MAX_REASON);
        let too_large = || Ok((vec![0; 100_000], vec![]));
        let reason = in_child_with_files(too_large).await.unwrap().unwrap_err();
        assert!(reason.contains("at most"), "{reason}");
        let killed = || -> Result<((), Vec<OwnedFd>), String> {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            Ok(((), vec![]))
        };
        let reason = in_child_with_files(killed).await.unwrap_err().to_string();
        assert!(reason.starts_with("the child process failed"), "{reason}");
    }
}
