//! Copies between a FIFO and a vsock stream's socket by splice(2), so that bytes stay in the kernel; to a
//! regular file by a child that writes it. Each copy ends at the end of its source.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;

use super::read_out;
use crate::splice::splice_once;
use crate::sys;

/// Most splices in a row before other tasks run.
const TURN: usize = 16;

/// Copies a FIFO to the guest, then ends the stream in the guest, too.
pub async fn fifo_to_stream(fifo: OwnedFd, stream: OwnedFd) -> io::Result<()> {
    let (from, to) = (watch(fifo)?, watch(stream)?);
    splice_all(&from, &to, &|| {}).await?;
    UnixStream::from(to.into_inner()).shutdown(Shutdown::Write)
}

/// Copies the guest's stream to a pipe; calls `moved` when bytes were moved.
pub async fn stream_to_pipe(stream: OwnedFd, pipe: OwnedFd, moved: impl Fn()) -> io::Result<()> {
    splice_all(&watch(stream)?, &watch(pipe)?, &moved).await
}

/// Copies the guest's stream to a FIFO, then waits until that is read, unless nobody else has it open for
/// reading. `reader` keeps what is in the FIFO as long as nobody reads; returned with the result, so that it
/// goes on doing so. Calls `moved` when bytes were moved.
pub async fn stream_to_fifo(
    stream: OwnedFd,
    writer: OwnedFd,
    reader: File,
    moved: impl Fn(),
) -> (io::Result<()>, Option<File>) {
    let (from, to) = match (watch(stream), watch(writer)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(error), _) | (_, Err(error)) => return (Err(error), Some(reader)),
    };
    if let Err(error) = splice_all(&from, &to, &moved).await {
        return (Err(error), Some(reader));
    }
    // While it is open, the kernel does not report that the last other reader has gone. The writing end keeps
    // what is in the FIFO.
    drop(reader);
    if let Err(error) = read_out::until_read(&to, moved).await {
        // Everything is written all the same. On a node, inotify's limits are the usual reason.
        crate::log::warn(format_args!("waiting for the reader of an output: {error}"));
    }
    match read_out::open_reader(&to) {
        Ok(reader) => (Ok(()), Some(reader)),
        Err(error) => (Err(error), None),
    }
}

/// Copies the guest's stream to a regular file, which a child writes; calls `moved` when bytes were moved to it.
pub async fn stream_to_file(stream: OwnedFd, file: File, moved: impl Fn()) -> io::Result<()> {
    let (writer, pipe) = sys::FileWriter::start(&file)?;
    drop(file);
    let copied = stream_to_pipe(stream, pipe, moved).await;
    // Its own reason is why the pipe has no reader.
    writer.finish().await.and(copied)
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd)
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    sys::watch(nonblocking(fd)?)
}

/// Whether `fd` is ready for one of `events`, or at its end, now.
fn is_ready(fd: &impl AsFd, events: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, events)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}

async fn splice_all(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>, moved: &impl Fn()) -> io::Result<()> {
    loop {
        // A FIFO that nobody has opened for writing yet reads as ended: only epoll tells the difference.
        let mut source = from.readable().await?;
        if splice_turn(from.get_ref(), to.get_ref(), moved)? == Turn::Ended {
            return Ok(());
        }
        // EAGAIN does not say which side blocked. The readiness guard is older than this poll, so no change
        // is lost.
        if !is_ready(from.get_ref(), PollFlags::IN)? {
            source.clear_ready();
            continue;
        }
        drop(source);
        let mut sink = to.writable().await?;
        if !is_ready(to.get_ref(), PollFlags::OUT)? {
            sink.clear_ready();
        }
        drop(sink);
        tokio::task::yield_now().await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Ended,
    Blocked,
}

fn splice_turn(from: &OwnedFd, to: &OwnedFd, moved: &impl Fn()) -> io::Result<Turn> {
    for _ in 0..TURN {
        match splice_once(from, to)? {
            Some(0) => return Ok(Turn::Ended),
            Some(_) => moved(),
            None => return Ok(Turn::Blocked),
        }
    }
    Ok(Turn::Blocked)
}
