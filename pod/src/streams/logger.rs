//! Logging programs (`binary://PATH?KEY=VALUE…`, which nerdctl uses): started with the streams, with the
//! container's names in the environment; they exit at the end of the streams. Descriptors follow containerd's
//! convention: 3 reads standard output, 4 standard error, and the program writes a byte to 5, or closes it,
//! when it is ready.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use super::fifo::Error;
use crate::sys;

/// How long a logging program may take to exit after the end of the streams: it may have a log to finish.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// The container whose output is logged.
#[derive(Debug, Clone, Copy)]
pub struct LoggedContainer<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's id.
    pub id: &'a str,
}

/// The program that a URI names.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    /// binary-v2: wait for the program's ready byte; otherwise closing the descriptor also counts.
    says_ready: bool,
}

/// A running logging program. Dropping this starts the deadline for its exit.
#[derive(Debug)]
pub struct Logger(#[expect(dead_code, reason = "dropping the sender is the message")] oneshot::Sender<()>);

/// The pipes to a logging program.
#[derive(Debug)]
pub struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

fn parse(uri: &str) -> Option<Program> {
    let (scheme, rest) = uri.split_once("://")?;
    let says_ready = match scheme {
        "binary" => false,
        "binary-v2" => true,
        _ => return None,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path: Cow<'_, str> = percent_decode_str(path).decode_utf8_lossy();
    // Each key and each value is an argument of its own.
    let pairs = form_urlencoded::parse(query.as_bytes());
    Some(Program {
        path: PathBuf::from(&*path),
        arguments: pairs
            .flat_map(|(key, value)| [key.into_owned(), value.into_owned()])
            .collect(),
        says_ready,
    })
}

/// Starts the logging program that `uri` names; None if it names none.
///
/// # Errors
/// [`Error::Logger`] with its path.
pub fn start(uri: &str, container: LoggedContainer<'_>) -> Result<Option<(Logger, Pipes)>, Error> {
    let Some(program) = parse(uri) else {
        return Ok(None);
    };
    let started = spawn(&program, container);
    let failed = |source| Error::Logger {
        path: program.path.clone(),
        source,
    };
    let (child, pipes, ready) = started.map_err(failed)?;
    let ended = sys::watch_end(&child).map_err(failed)?;
    let (wanted, unwanted) = oneshot::channel();
    let path = program.path.clone();
    tokio::spawn(async move {
        let says_ready = program.says_ready;
        let started = async {
            if !is_ready(ready).await && says_ready {
                crate::log::error(format_args!(
                    "logger {} never reported that it is ready",
                    path.display()
                ));
            }
            std::future::pending().await
        };
        tokio::select! {
            () = started => {}
            () = supervise(child, ended, unwanted, &path) => {}
        }
    });
    Ok(Some((Logger(wanted), pipes)))
}

fn spawn(program: &Program, container: LoggedContainer<'_>) -> io::Result<(Child, Pipes, Receiver)> {
    let (out, stdout) = io::pipe()?;
    let (error, stderr) = io::pipe()?;
    let (ready, theirs) = io::pipe()?;
    let mappings = [(OwnedFd::from(out), 3), (error.into(), 4), (theirs.into(), 5)];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .env("CONTAINER_ID", container.id)
        .env("CONTAINER_NAMESPACE", container.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .fd_mappings(mappings.into())
        .map_err(io::Error::other)?;
    let child = command.spawn()?;
    let pipes = Pipes {
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    Ok((child, pipes, Receiver::from_owned_fd(ready.into())?))
}

/// Whether the program wrote its ready byte; false if it closed the descriptor instead.
async fn is_ready(mut ready: Receiver) -> bool {
    matches!(ready.read(&mut [0]).await, Ok(1))
}

/// Waits for the program to exit, and kills it at its deadline.
async fn supervise(mut child: Child, ended: AsyncFd<OwnedFd>, unwanted: oneshot::Receiver<()>, path: &Path) {
    let is_over = tokio::select! {
        _ = ended.readable() => true,
        // Resolves with an error when the sender is dropped.
        _ = unwanted => tokio::time::timeout(END_DEADLINE, ended.readable()).await.is_ok(),
    };
    if !is_over {
        let seconds = END_DEADLINE.as_secs();
        crate::log::warn(format_args!(
            "logger {} has not exited within {seconds} s and is killed",
            path.display()
        ));
        sys::end_child(ended.get_ref());
    }
    match child.try_wait() {
        Ok(Some(status)) if status.success() => {}
        // Killed above, or stuck in the kernel: then nothing waits for it.
        Ok(None) => {}
        Ok(Some(status)) => crate::log::warn(format_args!("logger {}: {status}", path.display())),
        Err(error) => crate::log::error(format_args!("logger {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_in_uris() {
        let program = parse("binary:///usr/bin/log%20it?a=b%2Fc&flag=&x").unwrap();
        assert_eq!(program.path, Path::new("/usr/bin/log it"));
        assert_eq!(program.arguments, ["a", "b/c", "flag", "", "x", ""]);
        assert!(!program.says_ready);
        assert!(parse("binary-v2:///l").unwrap().says_ready);
        assert_eq!(parse("file:///x"), None);
        assert_eq!(parse("/run/fifo"), None);
    }
}
